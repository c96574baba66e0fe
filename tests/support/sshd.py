"""Fixtures around `LoopbackServer`: each test gets a server with a HOME and a PATH of its own.

"No tmux", "no python3" and "a fake nvidia-smi" are a matter of links: `sparse_path(directory,
names)`. Set TEST_SSH_SERVER=embedded to run everything against the embedded server,
TEST_SSH_PROGRAM=paramiko to log in by paramiko.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from remote.loopback import Keys, LoopbackServer, Route, Serving, make_keys
from remote.loopback.accounts import Account, find_sshd, why_not_sshd
from remote.loopback.embedded import Embedded
from remote.loopback.openssh import OpenSSH

EMBEDDED = os.environ.get("TEST_SSH_SERVER") == "embedded"
"""Whether every server is the embedded one, by request."""
PROGRAM = os.environ.get("TEST_SSH_PROGRAM", "auto")
"""Who logs in, in all tests that go on to a server: `paramiko` runs them without the ssh
program."""
_USUAL = (
    "sh bash env cat echo ls cp mv rm mkdir rmdir ln chmod touch sleep head tail wc cut tr sed awk"
    " grep find sort uniq xargs tee true false test date id uname hostname whoami df du stat"
    " dirname basename readlink realpath mktemp kill ps nohup setsid tar gzip gunzip sha256sum dd"
    " seq expr printf scp rsync git python3 tmux stty"
)
USUAL = tuple(_USUAL.split())
"""Commands of an ordinary server; those that this machine lacks are left out."""

SERVERS = pytest.StashKey[list[LoopbackServer]]()


class MakeServer(Protocol):
    """`make_server(**options)` starts a server with LoopbackServer's options; the test's end closes
    it."""

    def __call__(self, **options: Any) -> LoopbackServer: ...


def sparse_path(directory: Path, names: Iterable[str] = USUAL, without: Iterable[str] = ()) -> str:
    """A PATH of one folder that holds links to the named commands of this machine, and nothing
    else.

    A name may be a path (`/x/y/nvidia-smi`), which is linked by its last part. Commands not found
    here are left out. `python3` is linked to the base interpreter, never to a virtual
    environment's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in set(names) - set(without):
        found = base_python() if name in ("python3", "python") else shutil.which(name)
        link = directory / os.path.basename(name)
        if found and not link.is_symlink():
            link.symlink_to(os.path.realpath(found) if "pyenv" in found else os.path.abspath(found))
    directory.chmod(0o755)
    return str(directory)


def base_python() -> str:
    """The interpreter that this environment was made from."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def expected_kind(embedded: bool = False) -> str:
    """Which server would serve this process's own account, with the reason if it is not sshd."""
    reason = "asked for" if embedded else why_not_sshd(Account.find(None))
    return f"embedded ({reason})" if reason else f"{OpenSSH.kind} ({find_sshd()})"


class AccountServer(LoopbackServer):
    """Lets the account that it serves enter its folder, and gives it its HOME."""

    def open(self) -> None:
        account = Account.find(self.serving.user)
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory.chmod(0o711)
        for root, folders, files in os.walk(self.home):
            for entry in [root, *(os.path.join(root, name) for name in [*folders, *files])]:
                os.chown(entry, account.uid, account.gid, follow_symlinks=False)
        super().open()


def drop_connections(server: LoopbackServer) -> None:
    """End the sessions as a reboot of the server would; new logins are still served."""
    backend = server.backend
    if isinstance(backend, OpenSSH):
        backend.drop()
    elif isinstance(backend, Embedded):
        backend.run(backend.abort())


@contextmanager
def frozen(server: LoopbackServer) -> Iterator[None]:
    """Within the block no open session makes progress: the connection stands and is silent."""
    backend, over = server.backend, threading.Event()
    if isinstance(backend, OpenSSH):
        backend.send(signal.SIGSTOP)
    elif isinstance(backend, Embedded):
        backend.loop.call_soon_threadsafe(over.wait)
    try:
        yield
    finally:
        over.set()
        if isinstance(backend, OpenSSH):
            backend.send(signal.SIGCONT)


def ssh(
    server: LoopbackServer | Route, command: str, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run `command` by the OpenSSH client: the yardstick that knows nothing of our code."""
    argv = ["ssh", "-F", str(server.ssh_config), "-T", "loopback", command]
    return subprocess.run(argv, **{"capture_output": True, "timeout": 30, **options})


@pytest.fixture(scope="session")
def server_keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """One host key and one user key for all servers of this session."""
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def make_server(
    request: pytest.FixtureRequest, tmp_path: Path, server_keys: Keys
) -> Iterator[MakeServer]:
    """A factory of servers, each in a folder of its own, with the usual commands on its PATH."""
    servers: list[LoopbackServer] = []
    request.node.stash[SERVERS] = servers
    with ExitStack() as stack:

        def make(**options: Any) -> LoopbackServer:
            if options.get("options") and "sshd" not in expected_kind(EMBEDDED):
                pytest.skip(f"sshd's options need sshd: {expected_kind(EMBEDDED)}")
            directory = tmp_path / f"server{len(servers) or ''}"
            settings = {"keys": server_keys, "embedded": EMBEDDED, **options}
            if settings.get("path") is None:
                settings["path"] = sparse_path(directory / "bin")
            directory = settings.pop("directory", directory)
            server = LoopbackServer(directory, Serving(**settings))
            servers.append(server)
            stack.callback(end_tmux, server.home)
            return stack.enter_context(server)

        yield make


def end_tmux(home: Path) -> None:
    """End what tests left running: processes whose HOME is the server's. Only Linux lets us know
    them."""
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"HOME={home}".encode() in entry.read_bytes().split(b"\0"):
                os.kill(int(entry.parent.name), 9)
        except (OSError, ValueError):
            continue


@pytest.fixture
def server(make_server: MakeServer) -> LoopbackServer:
    """A server with an empty HOME and the usual commands."""
    return make_server()


@pytest.fixture(params=["sshd", "embedded"])
def each_server(request: pytest.FixtureRequest, make_server: MakeServer) -> LoopbackServer:
    """The same test against sshd and against the embedded server."""
    if request.param == "sshd" and "sshd" not in expected_kind(EMBEDDED):
        pytest.skip(f"no sshd: {expected_kind(EMBEDDED)}")
    return make_server(embedded=request.param == "embedded")


@pytest.fixture(scope="session")
def system_user() -> Iterator[str]:
    """An unprivileged account that is made for this session and removed after it; needs root."""
    if os.geteuid() != 0 or not shutil.which("useradd"):
        pytest.skip("only root with useradd can make an account to log in as")
    name = f"fabtest{uuid.uuid4().hex[:8]}"
    shell = shutil.which("bash") or "/bin/sh"
    # `*` is a password that nobody has (useradd's own `!` locks the account, which sshd refuses);
    # `/` is a home that exists, or sshd complains on stderr before it starts a command.
    command = ["useradd", "--system", "-M", "-d", "/", "--user-group", "-p", "*", "-s", shell, name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"useradd is not allowed here: {done.stderr.strip()}")
    yield name
    subprocess.run(["userdel", name], capture_output=True)


@pytest.fixture
def unprivileged(request: pytest.FixtureRequest, server_keys: Keys) -> Iterator[LoopbackServer]:
    """A server whose logins are no root: the caller's own account, or a made one where the caller
    is root."""
    if os.geteuid() == 0 and "sshd" not in expected_kind(EMBEDDED):
        pytest.skip("needs sshd: the embedded server logs in as nobody else")
    user = request.getfixturevalue("system_user") if os.geteuid() == 0 else None
    directory = Path(
        tempfile.mkdtemp(prefix="loopback-")
    )  # pytest's own folders are closed to other users
    directory.chmod(0o711)
    path = sparse_path(directory / "bin")
    serving = Serving(keys=server_keys, user=user, path=path, embedded=EMBEDDED)
    server = AccountServer(directory, serving)
    request.node.stash.setdefault(SERVERS, []).append(server)
    try:
        with server:
            yield server
    finally:
        end_tmux(server.home)
        shutil.rmtree(directory, ignore_errors=True)


def attach_logs(item: pytest.Item, report: pytest.TestReport) -> None:
    """Put the servers' logs under a failed test's report."""
    if not report.failed:
        return
    servers: list[LoopbackServer] = item.stash.get(SERVERS, [])
    for number, server in enumerate(servers):
        report.sections.append((f"SSH server {number}: log of {report.when}", server.log_tail()))


def header() -> str:
    return f"SSH server: {expected_kind(EMBEDDED)}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without the developer's SSH agent and git settings, for commands
    under test."""
    hidden = ("SSH_", "GIT_", "FABRIC_", "INVOKE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return {**kept, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", **(extra or {})}
