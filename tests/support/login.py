"""A login as a test needs it: an ssh_config for one host, somebody at the keyboard, and what came of it.

    config = write_config(tmp_path, server, StrictHostKeyChecking="no")
    assert logs_in(target(config), Answers("secret"))
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from remote.errors import RemoteError
from remote.loopback import LoopbackServer
from remote.ssh import host_keys, identities
from remote.ssh.connection import Connection, Target
from remote.ssh.identities import Secrets


def forget_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory of earlier tests, no agent of the developer's."""
    host_keys._accepted.clear()
    identities._unlocked.clear()
    Secrets._passwords.clear()
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


class Answers:
    """Somebody at the keyboard."""

    def __init__(self, *secrets: str, yes: bool = False) -> None:
        self.secrets = list(secrets)
        self.yes = yes
        self.asked: list[str] = []

    def confirm(self, text: str) -> bool:
        self.asked.append(text)
        return self.yes

    def secret(self, prompt: str) -> str:
        self.asked.append(prompt)
        return self.secrets.pop(0)


def write_config(tmp_path: Path, server: LoopbackServer, **options: str) -> str:
    """An ssh_config for one host named `box`, with `options` in place of the usual ones or beside them."""
    settings = {
        "HostName": server.host,
        "Port": str(server.port),
        "User": server.user,
        "IdentityFile": f'"{server.identity}"',
        "UserKnownHostsFile": f'"{server.known_hosts}"',
        "GlobalKnownHostsFile": "/dev/null",
        **options,
    }
    file = tmp_path / f"ssh_config{len(list(tmp_path.glob('ssh_config*')))}"
    file.write_text("Host box\n" + "".join(f"  {key} {value}\n" for key, value in settings.items() if value))
    return str(file)


def target(config: str, **options: object) -> Target:
    settings = {"ssh_config": config, "timeout_s": 10.0, "interactive": False, **options}
    return Target("box", **settings)  # type: ignore[arg-type]


def says(connection: Connection, command: str = "echo hello") -> bytes:
    channel = connection.start(command)
    said = b""
    while data := channel.receive(1 << 16):
        said += data
    return said


def logs_in(goal: Target, ask: Answers | None = None) -> bool:
    with Connection(goal, ask) as connection:
        return says(connection) == b"hello\n"


def refusal(goal: Target, ask: Answers | None = None) -> RemoteError:
    with pytest.raises(RemoteError) as found, Connection(goal, ask):
        pass
    assert "\n" not in str(found.value)
    assert threading.active_count() < 20
    return found.value
