"""A login as a test needs it: an ssh_config for one host, and what came of it.

config = write_config(tmp_path, server, StrictHostKeyChecking="no")
assert logs_in(target(config))
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.errors import RemoteError
from remote.loopback import LoopbackServer
from remote.ssh import known_hosts
from remote.ssh.connection import Connection
from remote.ssh.login import connect
from remote.ssh.target import Target

KEPT = "openssh, kept"
KEPT_S = 2.0


@pytest.fixture(params=["openssh", KEPT, "paramiko"])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which way is taken; `target` understands each."""
    if request.param != "paramiko" and not shutil.which("ssh"):
        pytest.skip("there is no ssh program")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    known_hosts._accepted.clear()
    sockets = Path("/tmp") / f"l{os.getpid()}"
    sockets.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sockets))
    yield str(request.param)
    shutil.rmtree(sockets, ignore_errors=True)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short directory of the test's own for the sockets."""
    folder = Path("/tmp") / f"k{os.getpid()}"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def forget_logins() -> None:
    """So that the next one is a new one, where `program` keeps them."""
    for socket in Path(os.environ["XDG_RUNTIME_DIR"]).glob("*/*"):
        socket.unlink()


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ssh-agent of the test's own."""
    path = Path("/tmp") / f"agent-{os.getpid()}-{time.monotonic_ns()}"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    while not path.exists():
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    process.terminate()
    process.wait()


def write_config(
    tmp_path: Path, server: LoopbackServer, name: str = "box", /, **options: str
) -> str:
    """An ssh_config for one host, with `options` in place of the usual ones or beside them."""
    settings = {
        "HostName": server.host,
        "Port": str(server.port),
        "User": server.user,
        "IdentityFile": f'"{server.identity}"',
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": f'"{server.known_hosts}"',
        "GlobalKnownHostsFile": "/dev/null",
        **options,
    }
    file = tmp_path / f"ssh_config{len(list(tmp_path.glob('ssh_config*')))}"
    lines = [f"  {key} {value}\n" for key, value in settings.items() if value]
    file.write_text(f"Host {name}\n" + "".join(lines))
    return str(file)


def join(*configs: str) -> str:
    """One ssh_config of several."""
    first = Path(configs[0])
    first.write_text("".join(Path(config).read_text() for config in configs))
    return str(first)


def target(config: str, **options: object) -> Target:
    settings = {"ssh_config": config, "timeout_s": 30.0, "interactive": False, **options}
    if settings.get("program") == KEPT:
        settings |= {"program": "openssh", "stay_s": KEPT_S}
    return Target("box", **settings)  # type: ignore[arg-type]


def says(connection: Connection, command: str = "echo hello") -> bytes:
    channel = connection.start(command)
    said = b""
    while data := channel.receive(1 << 16):
        said += data
    return said


def logs_in(goal: Target) -> bool:
    with connect(goal) as connection:
        return says(connection) == b"hello\n"


def refusal(goal: Target) -> RemoteError:
    with pytest.raises(RemoteError) as found, connect(goal) as connection:
        says(connection)
    assert "\n" not in str(found.value)
    return found.value
