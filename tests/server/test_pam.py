"""Logins on a real sshd that more than a key file decides on: a code by PAM, a closed server, a
security key."""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import subprocess
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer, Serving
from remote.loopback.accounts import find_sshd
from tests.e2e.test_three_commands import fab
from tests.support.login import logs_in, refusal, target, write_config
from tests.support.project import make_project
from tests.support.sshd import EMBEDDED, AccountServer, MakeServer, sparse_path
from tests.support.terminal import fab_on_terminal, read_until

pytestmark = [pytest.mark.timeout(120), pytest.mark.needs("ssh")]


@pytest.fixture
def pam(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, str]]]:
    """Give sshd these PAM rules, in a service of its own, and return the options that it needs."""
    sshd = None if EMBEDDED else find_sshd()
    if sshd is None or os.geteuid() != 0:
        pytest.skip("only root can give an installed sshd PAM rules of its own")
    name = f"sshd-test-{os.getpid()}"
    rules = Path("/etc/pam.d", name)
    with tempfile.TemporaryDirectory() as folder:
        # Its service is called as the program is; from 9.8 on it is a setting.
        os.symlink(sshd, Path(folder, name))
        named = subprocess.run([sshd, "-t", "-o", f"PAMServiceName={name}"], capture_output=True)
        if named.returncode:
            monkeypatch.setattr("remote.loopback.openssh.find_sshd", lambda: f"{folder}/{name}")

        def write(*lines: str) -> dict[str, str]:
            try:
                rules.write_text("".join(f"{line}\n" for line in lines))
            except OSError as error:
                pytest.skip(f"no PAM rules can be written here: {error}")
            service = {} if named.returncode else {"PAMServiceName": name}
            return {"UsePAM": "yes", "PermitRootLogin": "yes", **service}

        try:
            yield write
        finally:
            rules.unlink(missing_ok=True)


def test_a_code_is_asked_for_once_for_all_commands(
    pam: Callable[..., dict[str, str]], make_server: MakeServer, tmp_path: Path
) -> None:
    """A key and then a code, at a terminal: deploy asks, train, status and fetch-results do not."""
    server, project = with_a_code(pam, make_server, tmp_path)
    assert fab(project, server, "status", code=6).stdout == ""
    leader, process = fab_on_terminal(project, server, "deploy")
    read_until(leader, b"Password: ")
    os.write(leader, b"111111\n")
    read_until(leader, b"Password: ")
    os.write(leader, b"246810\n")
    seen = read_until(leader, b"next: ")
    assert process.wait(30) == 0 and b"246810" not in seen
    for words in (["train", "--follow"], ["status"], ["fetch-results"]):
        fab(project, server, *words)
    assert server.log.read_text().count("Accepted keyboard-interactive/pam") == 1
    fab(project, server, "logout")


def test_a_code_without_the_ssh_program(
    pam: Callable[..., dict[str, str]], make_server: MakeServer, tmp_path: Path
) -> None:
    """Asked for on the terminal alone, and not shown; where there is none, not asked for."""
    server, project = with_a_code(pam, make_server, tmp_path, ssh="paramiko")
    refused = fab(project, server, "logs", code=6)
    assert refused.stdout == "" and "permission denied" in refused.stderr
    with (tmp_path / "out").open("wb") as out:
        leader, process = fab_on_terminal(project, server, "status", "--json", stdout=out)
        for code in (b"111111\n", b"246810\n"):
            seen = read_until(leader, b"Password: ")
            os.write(leader, code)
            assert b"111111" not in seen
    assert process.wait(30) == 0 and json.loads((tmp_path / "out").read_text()) == []
    leader, process = fab_on_terminal(project, server, "status")
    read_until(leader, b"Password: ")
    assert not echoes(leader)
    os.write(leader, b"\x03")
    assert process.wait(30) == 130 and echoes(leader)


def test_a_password_is_sent_once_where_a_code_follows(
    pam: Callable[..., dict[str, str]], make_server: MakeServer, tmp_path: Path, program: str
) -> None:
    check = tmp_path / "check"
    check.write_text(f"#!/bin/sh\ntr -d '\\0' | tee -a {tmp_path}/got | grep -qx hunter2\n")
    check.chmod(0o755)
    rules = (
        f"auth required pam_exec.so quiet expose_authtok {check}",
        "account required pam_permit.so",
        "session required pam_permit.so",
    )
    methods = {"AuthenticationMethods": "password,keyboard-interactive"}
    allowed = {"PasswordAuthentication": "yes", "KbdInteractiveAuthentication": "yes"}
    server = make_server(options=pam(*rules) | methods | allowed)
    refused = refusal(target(write_config(tmp_path, server), password="hunter2", program=program))
    assert refused.exit_code == 6, refused
    assert (tmp_path / "got").read_text().count("hunter2") == 1


def echoes(terminal: int) -> bool:
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)


def with_a_code(
    pam: Callable[..., dict[str, str]], make_server: MakeServer, tmp_path: Path, **settings: object
) -> tuple[LoopbackServer, Path]:
    """A server that wants a key and then a code, which PAM calls a password; and a project."""
    check = tmp_path / "check"
    check.write_text("#!/bin/sh\ntest \"$(tr -d '\\0')\" = 246810\n")
    check.chmod(0o755)
    rules = (
        f"auth required pam_exec.so quiet expose_authtok {check}",
        "auth required pam_permit.so",
        "account required pam_permit.so",
        "session required pam_permit.so",
    )
    options = {
        "AuthenticationMethods": "publickey,keyboard-interactive",
        "KbdInteractiveAuthentication": "yes",
    }
    server = make_server(options=pam(*rules) | options)
    project = make_project(
        tmp_path / "project",
        {"a.sh": "echo up\n"},
        settings={"requirements": "none", "command": "sh a.sh", "project": "p", **settings},
        parts=("fabfile.py", "remote"),
    )
    return server, project


def test_a_server_that_is_closed_says_why(
    pam: Callable[..., dict[str, str]], system_user: str, tmp_path: Path
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="closed-"))
    folder.chmod(0o711)
    notice = folder / "nologin"
    options = pam(
        f"account requisite pam_nologin.so file={notice}",
        "account required pam_permit.so",
        "session required pam_permit.so",
    )
    path = sparse_path(folder / "bin")
    try:
        serving = Serving(user=system_user, options=options, path=path)
        with AccountServer(folder / "s", serving) as server:
            config = write_config(tmp_path, server)
            assert logs_in(target(config))
            notice.write_text("The cluster is closed until Friday.\n")
            refused = refusal(target(config))
            assert refused.exit_code == 6 and "closed until Friday" in str(refused)
    finally:
        shutil.rmtree(folder)


def test_a_security_key_that_is_not_plugged_in(make_server: MakeServer, tmp_path: Path) -> None:
    key = write_security_key(tmp_path / "id_ed25519_sk")
    server = make_server(options={"AuthorizedKeysFile": f"{key}.pub"})
    refused = refusal(target(write_config(tmp_path, server, IdentityFile=str(key))))
    assert refused.exit_code == 6 and "ED25519-SK" in str(refused), refused


def write_security_key(path: Path) -> Path:
    """The file that `ssh-keygen -t ed25519-sk` writes, for a device that nobody has."""

    def text(data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + data

    point = b"\x58" + bytes(30) + b"\x66"
    public = text(b"sk-ssh-ed25519@openssh.com") + text(point) + text(b"ssh:")
    private = bytes(8) + public + b"\x01" + text(b"handle") + text(b"") + text(b"me@box")
    private += bytes(range(1, 1 + -len(private) % 8))
    whole = b"openssh-key-v1\0" + text(b"none") + text(b"none") + text(b"") + struct.pack(">I", 1)
    armour = base64.encodebytes(whole + text(public) + text(private)).decode()
    path.write_text(
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{armour}-----END OPENSSH PRIVATE KEY-----\n"
    )
    path.chmod(0o600)
    Path(f"{path}.pub").write_text(
        f"sk-ssh-ed25519@openssh.com {base64.b64encode(public).decode()}\n"
    )
    return path
