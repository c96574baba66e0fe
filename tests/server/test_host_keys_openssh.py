"""Is this the server that we know? The same answer as the real `ssh` gives with the same files, case by case.

Two differences are meant. Host certificates can't be checked with paramiko: ours is a refusal that says why. And with
StrictHostKeyChecking no, ssh shows a changed or revoked key and logs in all the same; ours refuses.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from remote.errors import HostKeyRefused, RemoteError
from remote.loopback import LoopbackServer, make_key
from remote.ssh import host_keys
from remote.ssh.connection import Connection, Target
from tests.support.sshd import make_server, server_keys, sparse_path

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(not shutil.which("ssh"), reason="`ssh` is the yardstick")]
__all__ = ["make_server", "server_keys"]


@dataclass(frozen=True)
class Names:
    """What a known_hosts file may say: the server's own keys, another one, and its address."""

    port: int
    ed25519: str
    rsa: str
    other: str
    other_rsa: str

    @property
    def name(self) -> str:
        return f"[127.0.0.1]:{self.port}"


@dataclass(frozen=True)
class Case:
    """`lines` of known_hosts; `options` of ssh_config."""

    title: str
    lines: Callable[[Names], list[str]]
    options: Mapping[str, str] = field(default_factory=dict)
    hashed: bool = False
    second: Callable[[Names], list[str]] | None = None
    # Ours refuses, with this word in the reason, although ssh only warns and logs in.
    stricter: str | None = None


def yes(line: str) -> Callable[[Names], list[str]]:
    return lambda n: [line.format(name=n.name, port=n.port, key=n.ed25519, rsa=n.rsa, other=n.other, other_rsa=n.other_rsa)]


def lines(*texts: str) -> Callable[[Names], list[str]]:
    return lambda n: [part for text in texts for part in yes(text)(n)]


NO, NEW = {"StrictHostKeyChecking": "no"}, {"StrictHostKeyChecking": "accept-new"}
CASES = [
    Case("known", yes("{name} {key}")),
    Case("unknown", lines()),
    Case("unknown, ask in batch", lines(), {"StrictHostKeyChecking": "ask"}),
    Case("unknown, accept-new", lines(), NEW),
    Case("unknown, no", lines(), NO),
    Case("unknown, off", lines(), {"StrictHostKeyChecking": "off"}),
    Case("changed", yes("{name} {other}")),
    Case("changed, accept-new", yes("{name} {other}"), NEW),
    Case("changed, no", yes("{name} {other}"), NO, stricter="CHANGED"),
    Case("another beside it", lines("{name} {other}", "{name} {key}")),
    Case("revoked", lines("@revoked {name} {key}", "{name} {key}")),
    Case("revoked, no", lines("@revoked {name} {key}", "{name} {key}"), NO, stricter="revoked"),
    Case("revoked for all", lines("@revoked * {key}", "{name} {key}")),
    Case("another one revoked", lines("@revoked * {other}", "{name} {key}")),
    Case("authority only", yes("@cert-authority {name} {other}")),
    Case("authority and key", lines("@cert-authority {name} {other}", "{name} {key}")),
    Case("hashed", yes("{name} {key}"), hashed=True),
    Case("hashed and changed", yes("{name} {other}"), hashed=True),
    Case("wildcard address", yes("[127.0.0.*]:{port} {key}")),
    Case("wildcard port", yes("[127.0.0.1]:* {key}")),
    Case("everybody", yes("* {key}")),
    Case("negated", yes("*,!{name} {key}")),
    Case("question marks", yes("[127.0.0.?]:{port} {key}")),
    Case("list of names", yes("box,{name},other {key}")),
    Case("bare name serves the port", yes("127.0.0.1 {key}")),
    Case("bare name with another key", yes("127.0.0.1 {other}")),
    Case("other port only", yes("[127.0.0.1]:1 {key}")),
    Case("alias", yes("cluster {key}"), {"HostKeyAlias": "cluster"}),
    Case("alias in capitals", yes("cluster {key}"), {"HostKeyAlias": "CLUSTER"}),
    Case("alias with another key", lines("cluster {other}", "{name} {key}"), {"HostKeyAlias": "cluster"}),
    Case("alias unknown though the name is known", yes("{name} {key}"), {"HostKeyAlias": "cluster"}),
    Case("rsa known, ed25519 not", yes("{name} {rsa}")),
    Case("rsa changed, ed25519 unknown", yes("{name} {other_rsa}")),
    Case("both known", lines("{name} {rsa}", "{name} {key}")),
    Case("ed25519 changed, rsa right", lines("{name} {other}", "{name} {rsa}")),
    Case("algorithms without the known one", yes("{name} {rsa}"), {"HostKeyAlgorithms": "ssh-ed25519"}),
    Case("algorithms with the known one", yes("{name} {rsa}"), {"HostKeyAlgorithms": "rsa-sha2-512"}),
    Case("notes and broken lines", lines("# {name} {other}", "", "garbage", "{name} ssh-ed25519 !!!", "@odd * {other}", "{name} {key}")),
    Case("only broken lines", lines("{name}", "{name} ssh-ed25519", "{name} ssh-ed25519 AAAA")),
    Case("a comment behind the key", yes("{name} {key} root@server # note")),
    Case("leading blanks and tabs", yes("  \t{name}\t{key}")),
    Case("second file", lines(), second=yes("{name} {key}")),
    Case("second file contradicts", yes("{name} {other}"), second=yes("{name} {key}")),
    Case("second file revokes", yes("{name} {key}"), second=yes("@revoked {name} {key}")),
    Case("kind does not fit the key", yes("{name} ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIHq4nXOhVJ0l1mE2pV9c8d6kD0v0iV2b7Xq1f3l8m9n0")),
    Case("windows line ends", yes("{name} {key}\r")),
]


class Table:
    """A server with an ed25519 and an rsa key, and both clients to ask."""

    def __init__(self, server: LoopbackServer, directory: Path, keys: Path) -> None:
        self.server, self.directory = server, directory
        public = [" ".join(Path(f"{keys / name}.pub").read_text().split()[:2]) for name in ("rsa", "other", "other_rsa")]
        self.names = Names(server.port, " ".join(server.known_hosts.read_text().split()[1:3]), *public)

    def config(self, case: Case, folder: str) -> str:
        """An ssh_config with known_hosts files of its own, since a client may add to them."""
        place = self.directory / folder
        place.mkdir()
        files = [place / "known_hosts", *([place / "second"] if case.second else [])]
        if known := case.lines(self.names):
            (place / "known_hosts").write_text("".join(f"{line}\n" for line in known))
        if case.second:
            (place / "second").write_text("".join(f"{line}\n" for line in case.second(self.names)))
        if case.hashed:
            subprocess.run(["ssh-keygen", "-H", "-f", files[0]], check=True, capture_output=True)
        options = {
            "HostName": "127.0.0.1", "Port": self.server.port, "User": self.server.user, "IdentityFile": self.server.identity,
            "IdentitiesOnly": "yes", "UserKnownHostsFile": " ".join(map(str, files)), "GlobalKnownHostsFile": "/dev/null",
            "BatchMode": "yes", "StrictHostKeyChecking": "yes", **case.options,
        }  # fmt: skip
        file = place / "config"
        file.write_text("Host box\n" + "".join(f"  {key} {value}\n" for key, value in options.items()))
        return str(file)

    def ssh(self, case: Case) -> tuple[bool, str]:
        done = subprocess.run(["ssh", "-F", self.config(case, "theirs"), "box", "true"], capture_output=True, text=True, timeout=30)
        return done.returncode == 0, done.stderr

    def ours(self, case: Case) -> tuple[bool, str]:
        host_keys._accepted.clear()
        try:
            with Connection(Target("box", ssh_config=self.config(case, "ours"), interactive=False, timeout_s=10)):
                return True, ""
        except HostKeyRefused as error:
            assert error.exit_code == 5 and "\n" not in str(error)
            return False, str(error)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostkeys")
    for name in ("rsa", "other", "other_rsa", "host", "user", "ca"):
        make_key(folder / name, "rsa" if "rsa" in name else "ed25519")
    return folder


@pytest.fixture(scope="module")
def both_keys(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[LoopbackServer]:
    """One server for the whole table."""
    from remote.loopback import Keys

    folder = tmp_path_factory.mktemp("server")
    with LoopbackServer(folder, keys=Keys(keys / "host", keys / "user"), options={"HostKey": str(keys / "rsa")}) as server:
        if "sshd" not in server.kind:
            pytest.skip("needs OpenSSH's sshd")
        yield server


@pytest.fixture
def table(both_keys: LoopbackServer, tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Table(both_keys, tmp_path, keys)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_the_answer_is_that_of_ssh(table: Table, case: Case) -> None:
    theirs, said = table.ssh(case)
    ours, why = table.ours(case)
    if case.stricter:
        assert theirs and not ours and case.stricter in why and case.stricter.lower() in said.lower()
        return
    assert ours == theirs, f"ssh: {theirs} {said}\nours: {ours} {why}"
    if not ours:
        assert ("CHANGED" in why) == ("HAS CHANGED" in said), (why, said)
        assert ("revoked" in why) == ("revoked" in said.lower()), (why, said)


@pytest.mark.parametrize("strict", ["accept-new", "no"])
def test_what_was_learned_is_known_to_ssh_and_the_other_way(table: Table, strict: str) -> None:
    case = Case("learn", lines(), {"StrictHostKeyChecking": strict, "HashKnownHosts": "yes"})
    assert table.ssh(case)[0] and table.ours(case)[0]
    theirs, ours = (table.directory / name / "known_hosts" for name in ("theirs", "ours"))
    theirs_text, ours_text = theirs.read_text(), ours.read_text()
    assert theirs_text.startswith("|1|") and ours_text.startswith("|1|") and ours.stat().st_mode & 0o077 == 0
    theirs.write_text(ours_text)
    ours.write_text(theirs_text)
    for name in ("theirs", "ours"):
        config = table.directory / name / "config"
        config.write_text(config.read_text().replace(f"StrictHostKeyChecking {strict}", "StrictHostKeyChecking yes"))
    assert subprocess.run(["ssh", "-F", table.directory / "theirs" / "config", "box", "true"], capture_output=True).returncode == 0
    with Connection(Target("box", ssh_config=str(table.directory / "ours" / "config"), interactive=False)):
        pass


def test_a_host_certificate_is_refused_with_the_reason(tmp_path: Path, keys: Path) -> None:
    """ssh logs in by the authority's word; we can't check it, and say so instead of trusting."""
    from remote.loopback import Keys

    shutil.copytree(keys, tmp_path / "keys")
    place = tmp_path / "keys"
    sign = ["ssh-keygen", "-q", "-s", place / "ca", "-I", "host", "-h", "-n", "127.0.0.1", place / "host.pub"]
    subprocess.run([*map(str, sign)], check=True, capture_output=True)
    options = {"HostCertificate": str(place / "host-cert.pub")}
    with LoopbackServer(tmp_path / "server", keys=Keys(place / "host", place / "user"), options=options) as server:
        authority = " ".join((place / "ca.pub").read_text().split()[:2])
        table = Table(server, tmp_path, place)
        case = Case("certificate", lambda names: [f"@cert-authority 127.0.0.1,{names.name} {authority}"])
        assert table.ssh(case)[0]
        ours, why = table.ours(case)
        assert not ours and "certificate" in why and "fingerprint" in why


def test_each_jump_hop_is_checked_as_ssh_checks_it(make_server, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Four cases: the hop's key and the target's key, right or unknown; the answer and who is blamed are ssh's."""
    server, hop = make_server(), make_server()
    empty = tmp_path / "empty"
    empty.touch()
    for hop_known in (True, False):
        for target_known in (True, False):
            file = tmp_path / f"config{hop_known}{target_known}"
            file.write_text(
                "".join(
                    f"Host {name}\n  HostName 127.0.0.1\n  Port {one.port}\n  User {one.user}\n  IdentityFile {one.identity}\n"
                    f"  IdentitiesOnly yes\n  UserKnownHostsFile {one.known_hosts if known else empty}\n  GlobalKnownHostsFile /dev/null\n"
                    f"  StrictHostKeyChecking yes\n  BatchMode yes\n{jump}"
                    for name, one, known, jump in (("box", server, target_known, "  ProxyJump hop\n"), ("hop", hop, hop_known, ""))
                )
            )
            theirs = subprocess.run(["ssh", "-F", file, "box", "true"], capture_output=True, timeout=30).returncode == 0
            try:
                with Connection(Target("box", ssh_config=str(file), interactive=False, timeout_s=10)):
                    ours, blamed = True, None
            except RemoteError as error:
                ours, blamed = False, error.host
            assert ours == theirs == (hop_known and target_known)
            assert blamed == (None if ours else "box" if hop_known else "hop")


# Without an OpenSSH client the same files give the same answers where they need no more than plain known_hosts.
PLAIN = [case for case in CASES if not case.hashed and not case.stricter]


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.title)
def test_without_an_openssh_client_the_rules_are_the_same(table: Table, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, _ = table.ssh(case)
    monkeypatch.setenv("PATH", sparse_path(table.directory / "few", ["sh"]))
    ours, why = table.ours(case)
    assert ours == theirs, why
