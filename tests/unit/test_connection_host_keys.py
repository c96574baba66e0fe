"""What known_hosts says, and what follows from it; the real ssh-keygen is the yardstick for finding lines."""

from __future__ import annotations

import base64
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from remote.errors import HostKeyRefused
from remote.ssh import host_keys
from remote.ssh.host_keys import Known, check, fingerprint, judge, parse_known_hosts, preferred_algorithms, remember
from remote.ssh.ssh_config import HostConfig, Spec, build


def blob(kind: str, number: int) -> bytes:
    return len(kind).to_bytes(4, "big") + kind.encode() + (32).to_bytes(4, "big") + bytes([number]) * 32


ED1, ED2, RSA = blob("ssh-ed25519", 1), blob("ssh-ed25519", 2), blob("ssh-rsa", 3)


def line(name: str, key: bytes, marker: str = "", note: str = "") -> str:
    kind = key[4 : 4 + int.from_bytes(key[:4], "big")].decode()
    return " ".join(part for part in (marker, name, kind, base64.b64encode(key).decode(), note) if part)


def known(text: str, name: str = "box", plain: str | None = None) -> Known:
    return Known(
        (name,), tuple(parse_known_hosts(text, "file", name)), tuple(parse_known_hosts(text, "file", plain)) if plain else ()
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "unknown"),
        (line("box", ED1), "known"),
        (line("other", ED1), "unknown"),
        (line("box", ED2), "changed"),
        (line("box", RSA), "changed"),  # as OpenSSH: a host with a key of another kind only is not a new host
        (line("box", RSA) + "\n" + line("box", ED1), "known"),
        (line("box", ED2) + "\n" + line("box", ED1), "known"),
        (line("BOX", ED1), "known"),
        (line("*", ED1), "known"),
        (line("b?x,!box", ED1), "unknown"),
        (line("*,!box", ED2) + "\n" + line("box", ED1), "known"),
        (line("box", ED1) + "\n" + line("*", ED1, "@revoked"), "revoked"),
        (line("box", ED1) + "\n" + line("*", ED2, "@revoked"), "known"),
        (line("box", ED2, "@cert-authority"), "authority"),
        (line("box", ED2, "@cert-authority") + "\n" + line("box", ED1), "known"),
        (line("box", ED1, "@strange"), "unknown"),
        ("# " + line("box", ED1), "unknown"),
        ("box ssh-ed25519 nonsense\nbox\n\x00\n@revoked\n" + line("  box", ED1, note="a note # more"), "known"),
        ("box 1024 35 123456789\n" + line("box", ED1), "known"),
        (line("box", ED1).replace("ssh-ed25519", "ssh-rsa", 1), "unknown"),
        (line("|1|nonsense", ED1), "unknown"),
        (line("[box]:2222", ED1), "unknown"),
    ],
)
def test_the_answer_for_one_key(text: str, answer: str) -> None:
    assert judge(known(text), ED1).answer == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (line("[box]:2222", ED1), "known"),
        (line("[box]:2222", ED2) + "\n" + line("box", ED1), "changed"),
        (line("box", ED1), "known"),
        (line("box", ED2), "unknown"),
        (line("[*]:2222", ED1), "known"),
        (line("box", ED1) + "\n" + line("box", ED1, "@revoked"), "revoked"),
    ],
)
def test_the_answer_on_another_port(text: str, answer: str) -> None:
    assert judge(known(text, "[box]:2222", "box"), ED1).answer == answer


def test_a_changed_key_names_the_line_of_its_kind() -> None:
    entry = judge(known("\n" + line("box", RSA) + "\n" + line("box", ED2)), ED1).entry
    assert entry is not None and entry.place == "file:3"


def test_known_kinds_are_offered_first() -> None:
    order = preferred_algorithms(known(line("box", RSA)))
    assert order[:2] == ("rsa-sha2-512", "rsa-sha2-256") and set(order) == set(host_keys.ALGORITHMS)
    assert preferred_algorithms(Known(("box",)))[0] == "ssh-ed25519"
    assert preferred_algorithms(Known(("box",)), ["rsa-sha2-256", "ssh-dss"]) == ("rsa-sha2-256",)


@pytest.fixture
def config(tmp_path: Path) -> HostConfig:
    host_keys._accepted.clear()
    return replace(build(Spec("box", "me"), {}), known_hosts=(str(tmp_path / "new" / "known_hosts"),), hash_known_hosts=False)


def saved(config: HostConfig) -> str:
    file = Path(config.known_hosts[0])
    return file.read_text() if file.exists() else ""


@pytest.mark.parametrize(
    ("strict", "answer", "accepted"),
    [
        ("ask", None, False),
        ("ask", False, False),
        ("ask", True, True),
        ("yes", True, False),
        ("accept-new", None, True),
        ("no", None, True),
    ],
)
def test_who_may_accept_an_unknown_key(config: HostConfig, strict: str, answer: bool | None, accepted: bool) -> None:
    asked: list[str] = []
    confirm = None if answer is None else lambda text: bool(asked.append(text)) or answer  # type: ignore[func-returns-value]  # shorter than a function
    config = replace(config, strict=strict)
    if accepted:
        check(config, Known(("box",)), ED1, confirm)
        assert saved(config) == line("box", ED1) + "\n"
        assert Path(config.known_hosts[0]).stat().st_mode & 0o777 == 0o600
        check(config, known(saved(config)), ED1, None)
    else:
        with pytest.raises(HostKeyRefused):
            check(config, Known(("box",)), ED1, confirm)
        assert saved(config) == ""
    assert all(fingerprint(ED1) in text for text in asked)


@pytest.mark.parametrize("strict", ["ask", "yes", "accept-new", "no"])
@pytest.mark.parametrize("text", [line("box", ED2), line("box", ED1, "@revoked"), line("box", ED2, "@cert-authority")])
def test_nobody_may_accept_a_wrong_key(config: HostConfig, strict: str, text: str) -> None:
    with pytest.raises(HostKeyRefused) as refusal:
        check(replace(config, strict=strict), known(text), ED1, lambda question: True)
    assert "file:1" in str(refusal.value) and refusal.value.exit_code == 5
    assert saved(config) == ""


def test_a_changed_key_comes_with_the_command_that_forgets_it(config: HostConfig) -> None:
    with pytest.raises(HostKeyRefused, match=r"ssh-keygen -f file -R \"\[box\]:2222\""):
        check(config, known(line("[box]:2222", ED2), "[box]:2222"), ED1, None)


def test_a_line_is_appended_to_an_unfinished_one(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text("unfinished")
    assert remember(file, "box", ED1, hashed=False)
    assert file.read_text() == "unfinished\n" + line("box", ED1) + "\n"


def test_a_hashed_line_is_found_again_and_tells_no_name(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    remember(file, "[box]:2222", ED1, hashed=True)
    assert "box" not in file.read_text()
    assert judge(known(file.read_text(), "[box]:2222"), ED1).answer == "known"


def test_an_unwritable_file_does_not_stop_a_login(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not remember(tmp_path / "file" / "known_hosts", "box", ED1, hashed=False)


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is the yardstick")
@pytest.mark.parametrize("name", ["box", "[box]:2222", "a.example.org", "::1"])
def test_the_lines_found_are_those_that_ssh_keygen_finds(tmp_path: Path, name: str) -> None:
    file = tmp_path / "known_hosts"
    real = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", real], check=True)
    key = " ".join((tmp_path / "key.pub").read_text().split()[:2])
    names = [
        "box",
        "BOX,other",
        "*",
        "b?x",
        "!box,*",
        "*.example.org,!a.example.org",
        "[box]:2222",
        "[box]:*",
        "[*]:2222",
        "::1",
        "b*x*",
        "?",
    ]
    text = (
        "".join(f"{each} {key}\n" for each in names)
        + f"@revoked b* {key}\n@cert-authority *.org {key}\n# box {key}\n box  {key}\n"
    )
    file.write_text(text)
    remember(file, "box", base64.b64decode(key.split()[1]), hashed=True)
    found = subprocess.run(["ssh-keygen", "-F", name, "-f", file], capture_output=True, text=True, check=False).stdout
    wanted = [int(part.split("found: line ")[1].split()[0]) for part in found.splitlines() if "found: line " in part]
    assert [entry.line for entry in parse_known_hosts(file.read_text(), "file", name)] == wanted
