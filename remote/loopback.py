"""An SSH server on 127.0.0.1 for `fab demo` and the tests: the machine's own OpenSSH sshd, else an embedded one.

Everything it needs and writes lies in one directory: keys, known_hosts, ssh_config, log and the HOME of its sessions.
It listens on 127.0.0.1 only, on a port that the system chooses, and stops with the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from remote.errors import ServerUnfit

if TYPE_CHECKING:
    import asyncssh

HOST = "127.0.0.1"
START_TIMEOUT_S = 10.0
CHUNK = 256 * 1024
SBIN = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/local/bin", "/opt/homebrew/sbin", "/usr/bin")
SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
)


@dataclass(frozen=True)
class Keys:
    """Private key files in OpenSSH's format, each with its public half beside it as `<name>.pub`."""

    host: Path
    user: Path


@dataclass(frozen=True)
class Route:
    """One way to log in: where, as whom, and the files with which `ssh -F ssh_config loopback` asks nothing."""

    host: str
    port: int
    user: str
    identity: Path
    known_hosts: Path
    ssh_config: Path


@dataclass(frozen=True)
class Session:
    """What a login gets: the account, and the environment and shell of its commands."""

    account: Account
    home: Path
    path: str
    env: Mapping[str, str]
    shell: str

    def environ(self) -> dict[str, str]:
        """HOME and PATH as chosen; `env` may override nothing of the account."""
        return {**self.env, "HOME": str(self.home), "PATH": self.path}


@dataclass(frozen=True)
class Account:
    """The part of a passwd entry that a login needs."""

    name: str
    uid: int
    gid: int
    shell: str
    known: bool = field(default=True)

    @classmethod
    def find(cls, name: str | None) -> Account:
        """The named account, or that of this process; a container's uid may have no entry, which only sshd minds."""
        import pwd

        try:
            entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
        except KeyError:
            if name:
                raise ServerUnfit(f"there is no account {name!r} here", host=HOST, step="loopback server") from None
            return cls(f"uid{os.geteuid()}", os.geteuid(), os.getegid(), "/bin/sh", known=False)
        shell = entry.pw_shell if os.access(entry.pw_shell, os.X_OK) else "/bin/sh"
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid, shell)


class Backend(Protocol):
    """What serves: a real sshd or the embedded one. `open` returns the port."""

    kind: str

    def open(self) -> int: ...
    def close(self) -> None: ...
    def drop(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...


def find_sshd() -> str | None:
    """OpenSSH's daemon lives outside most users' PATH; sshd insists on being called by an absolute path."""
    return shutil.which("sshd", path=os.pathsep.join([*SBIN, os.environ.get("PATH", "")]))


def why_not_sshd(account: Account) -> str | None:
    """Why sshd can't serve a login to this account here; None if it can."""
    if find_sshd() is None:
        return "OpenSSH's sshd is not installed"
    if not account.known:
        return f"uid {account.uid} has no passwd entry"
    if os.path.basename(account.shell) in ("nologin", "false"):
        return f"the account {account.name} has no login shell"
    if os.geteuid() == 0 and _is_locked(account.name):
        return f"the account {account.name} is locked"
    return None


def _is_locked(name: str) -> bool:
    """sshd without PAM refuses an account whose password field begins with an exclamation mark."""
    try:
        lines = Path("/etc/shadow").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{name}:!") for line in lines)


def make_keys(directory: Path, host_type: str = "ed25519", user_type: str = "ed25519") -> Keys:
    """Generate a host key and a user key (`ed25519`, `rsa` or `ecdsa`) below `directory`."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Keys(make_key(directory / "host_key", host_type), make_key(directory / "user_key", user_type))


def make_key(path: Path, key_type: str = "ed25519") -> Path:
    """Write a fresh private key to `path` (0600) and its public half to `path`.pub."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    if key_type == "rsa":
        key = rsa.generate_private_key(65537, 2048)
    elif key_type == "ecdsa":
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(private)
    Path(f"{path}.pub").write_bytes(public + b"\n")
    return path


class LoopbackServer:
    """`with LoopbackServer(directory) as server:` serves logins until the block ends.

    `home`, `path`, `env` and `shell` are what the sessions see (defaults: `directory/home`, this process's PATH,
    nothing, the account's own). `embedded` asks for the embedded server even where sshd is installed. `user` is an
    account to log in as, if this process is root; its HOME is chowned to it. `options` are sshd_config settings that
    come before ours and so win; the embedded server refuses them. `password` lets that password in too, embedded only.

    Once open: `host, port, user, identity, known_hosts, ssh_config` (together: `route`), `log`, `kind`.
    """

    host = HOST
    port: int
    kind: str
    user: str
    route: Route
    identity: Path
    known_hosts: Path
    ssh_config: Path

    def __init__(
        self,
        directory: Path | str,
        *,
        home: Path | str | None = None,
        path: str | None = None,
        env: Mapping[str, str] | None = None,
        embedded: bool = False,
        user: str | None = None,
        shell: str | None = None,
        keys: Keys | None = None,
        options: Mapping[str, str] | None = None,
        password: str | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.home = Path(home).absolute() if home else self.directory / "home"
        self.path = path if path is not None else os.environ.get("PATH", os.defpath)
        self.log = self.directory / "log"
        self._env, self._shell, self._user, self._keys = dict(env or {}), shell, user, keys
        self._embedded, self._options, self._password = embedded or password is not None, dict(options or {}), password
        self._backend: Backend | None = None

    def __enter__(self) -> LoopbackServer:
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self) -> None:
        """Make what is missing, start to serve and wait for an SSH banner; errors carry the log's end."""
        account = Account.find(self._user)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._keys = self._keys or make_keys(self.directory / "keys")
        if account.uid != os.geteuid():
            self._admit(account)
        session = Session(account, self.home, self.path, self._env, self._shell or account.shell)
        self._backend = self._choose(session, self._keys)
        try:
            self.kind, self.port, self.user = self._backend.kind, self._backend.open(), account.name
            self.route = self._write_route(self.port, self.directory)
            self.known_hosts, self.ssh_config = self.route.known_hosts, self.route.ssh_config
            self.identity = self.route.identity
            self._await_banner(self.port)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening and end the sessions' sshd processes; what a session left running on purpose (tmux) lives."""
        backend, self._backend = self._backend, None
        if backend:
            backend.thaw()
            backend.close()

    def via(self, port: int) -> Route:
        """The same login through a relay that listens on `port` of 127.0.0.1, with files of its own."""
        directory = self.directory / f"via-{port}"
        directory.mkdir(exist_ok=True)
        return self._write_route(port, directory)

    def drop_connections(self) -> None:
        """Kill the sessions' sshd processes, as a reboot of the server would; new logins are still served."""
        self._open().drop()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the block no open session makes progress (SIGSTOP): the connection stands and is silent."""
        backend = self._open()
        backend.freeze()
        try:
            yield
        finally:
            backend.thaw()

    def log_tail(self, lines: int = 40) -> str:
        """The end of the server's log, for error messages and failed tests."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _open(self) -> Backend:
        if self._backend is None:
            raise RuntimeError("this LoopbackServer is not open")
        return self._backend

    def _choose(self, session: Session, keys: Keys) -> Backend:
        if not self._embedded and why_not_sshd(session.account) is None:
            return OpenSSH(self.directory, session, keys, self.log, self._options)
        if self._options:
            raise ValueError("the embedded SSH server knows no sshd_config options")
        return Embedded(session, keys, self.log, self._password)

    def _admit(self, account: Account) -> None:
        """Let another account reach its HOME and its session's files; it can't if a folder above is closed to it."""
        if os.geteuid() != 0:
            raise ServerUnfit(f"only root can serve logins as {account.name}", host=HOST, step="loopback server")
        self.directory.chmod(0o711)
        for root, folders, files in os.walk(self.home):
            for entry in [root, *(os.path.join(root, name) for name in [*folders, *files])]:
                os.chown(entry, account.uid, account.gid, follow_symlinks=False)
        for parent in self.home.parents:
            if not parent.stat().st_mode & 0o001:
                raise ServerUnfit(
                    f"{account.name} can't enter {parent}",
                    host=HOST,
                    step="loopback server",
                    remedy="choose a directory that everybody may enter (mode 0711)",
                )

    def _write_route(self, port: int, directory: Path) -> Route:
        assert self._keys is not None
        key = Path(f"{self._keys.host}.pub").read_text().split()
        known_hosts = directory / "known_hosts"
        known_hosts.write_text(f"[{HOST}]:{port} {key[0]} {key[1]}\n")
        route = Route(HOST, port, self.user, self._keys.user, known_hosts, directory / "ssh_config")
        route.ssh_config.write_text(render_ssh_config(route))
        return route

    def _await_banner(self, port: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), START_TIMEOUT_S) as client:
                if client.recv(4) == b"SSH-":
                    return
                break  # it answered, and not with a banner: it won't get better
            time.sleep(0.02)
        raise ServerUnfit(
            f"the SSH server on loopback does not answer; its log ends with:\n{self.log_tail()}",
            host=HOST,
            step="loopback server",
        )


class OpenSSH:
    """The machine's sshd, one process per connection (`sshd -i`), as socket activation does it.

    That way the port is ours from the first moment (no search for a free one), nothing is left listening when this
    process dies, and every process to end is a child that we know by pid.
    """

    kind = "OpenSSH sshd"

    def __init__(self, directory: Path, session: Session, keys: Keys, log: Path, options: Mapping[str, str]) -> None:
        self._config = directory / "sshd_config"
        self._entry = directory / "session.sh"
        self._session, self._keys, self._log, self._options = session, keys, log, options
        self._children: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def open(self) -> int:
        authorized = self._config.with_name("authorized_keys")
        authorized.write_bytes(Path(f"{self._keys.user}.pub").read_bytes())
        authorized.chmod(0o644)  # sshd reads it as the account that logs in
        self._entry.write_text(render_entry(self._session.shell))
        self._entry.chmod(0o755)
        self._config.write_text(render_sshd_config(self._session, self._keys, authorized, self._entry, self._options))
        self._sshd = find_sshd() or "sshd"
        _check_config(self._sshd, self._config)
        self._output: IO[bytes] = self._log.open("ab")
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._accept, name="loopback-sshd", daemon=True)
        self._thread.start()
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._woken in ready:
                    return
                with contextlib.suppress(OSError):  # the client may be gone already
                    self._serve(self._listener.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        command = [self._sshd, "-i", "-e", "-f", str(self._config)]
        # A session of its own: Ctrl-C at our terminal is not for it, and its group is sshd's processes and no others
        # (sshd puts the user's commands into new sessions).
        with client:
            end, log = client.fileno(), self._output
            child = subprocess.Popen(command, stdin=end, stdout=end, stderr=log, start_new_session=True, cwd="/", env={})
        with self._lock:
            self._children = [*(old for old in self._children if old.poll() is None), child]

    def _signal(self, number: signal.Signals) -> list[subprocess.Popen[bytes]]:
        with self._lock:
            alive = [child for child in self._children if child.poll() is None]
        for child in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, number)
        return alive

    def drop(self) -> None:
        for child in self._signal(signal.SIGKILL):
            child.wait()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        if not hasattr(self, "_thread"):
            return
        self._wake.send(b"x")
        self._thread.join()
        for end in (self._listener, self._wake, self._woken):
            end.close()
        deadline = time.monotonic() + 1.0
        for child in self._signal(signal.SIGTERM):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
        self.drop()
        self._output.close()


def _check_config(sshd: str, config: Path) -> None:
    """`sshd -t` tells what is wrong before anybody connects; as root it also wants its empty directory to exist."""
    for _ in range(2):
        test = subprocess.run([sshd, "-t", "-f", str(config)], capture_output=True, text=True, timeout=START_TIMEOUT_S)
        missing = re.search(r"Missing privilege separation directory: (\S+)", test.stderr)
        if test.returncode == 0:
            return
        if not missing or os.geteuid() != 0:
            break
        os.makedirs(missing[1], mode=0o755, exist_ok=True)
    raise ServerUnfit(f"sshd refuses its configuration: {test.stderr.strip()}", host=HOST, step="loopback server")


def render_sshd_config(session: Session, keys: Keys, authorized: Path, entry: Path, options: Mapping[str, str]) -> str:
    """sshd takes the first value that it sees, so `options` come first."""
    sftp = next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), None)
    settings = [
        *options.items(),
        ("HostKey", _quote(keys.host)),
        ("AuthorizedKeysFile", _quote(authorized, percent=True)),
        ("AllowUsers", session.account.name),
        ("PermitRootLogin", "prohibit-password"),
        ("PasswordAuthentication", "no"),
        ("KbdInteractiveAuthentication", "no"),
        ("UsePAM", "no"),
        ("StrictModes", "no"),  # the directory may lie below a shared /tmp
        ("UseDNS", "no"),
        ("PrintMotd", "no"),
        ("PrintLastLog", "no"),
        ("PidFile", "none"),
        ("MaxSessions", "100"),
        ("LogLevel", "VERBOSE"),
        ("SetEnv", " ".join(_quote(f"{name}={value}") for name, value in session.environ().items())),
        ("ForceCommand", shlex.quote(str(entry))),
        *([("Subsystem", f"sftp {sftp}")] if sftp and "Subsystem" not in options else []),
    ]
    return "".join(f"{name} {value}\n" for name, value in settings)


def render_entry(shell: str) -> str:
    """Start the command in HOME: sshd would start it in the account's own home, whatever HOME says.

    The outer login shell has read its start-up files already; a SHLVL keeps bash from reading them a second time.
    """
    return f"""#!/bin/sh
cd "$HOME" || exit 1
SHLVL=1; export SHLVL
if [ -z "${{SSH_ORIGINAL_COMMAND+set}}" ]; then exec {shlex.quote(shell)} -l; fi
line=$SSH_ORIGINAL_COMMAND
unset SSH_ORIGINAL_COMMAND
exec {shlex.quote(shell)} -c "$line"
"""


def render_ssh_config(route: Route) -> str:
    """A client configuration of one host, named `loopback`, that asks nothing and trusts exactly one key."""
    return "".join(
        f"{line}\n"
        for line in (
            "Host loopback",
            f"    HostName {route.host}",
            f"    Port {route.port}",
            f"    User {route.user}",
            f"    IdentityFile {_quote(route.identity, percent=True)}",
            "    IdentitiesOnly yes",
            f"    UserKnownHostsFile {_quote(route.known_hosts, percent=True)}",
            "    GlobalKnownHostsFile /dev/null",
            "    StrictHostKeyChecking yes",
        )
    )


def _quote(value: object, percent: bool = False) -> str:
    """Quote for OpenSSH's configuration files, where `%` begins a token in some settings."""
    text = str(value)
    if any(character in text for character in "\n\r\0"):
        raise ValueError(f"OpenSSH's configuration can't hold a line break: {text!r}")
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text.replace("%", "%%") if percent else text}"'


class Embedded:
    """For machines without sshd: asyncssh in a thread, running real commands.

    As with sshd, a command without a terminal outlives its connection and notices only that its pipes are closed. It
    knows no SFTP, no forwarding and no terminals; a request for a terminal gets pipes.
    """

    kind = "embedded"

    def __init__(self, session: Session, keys: Keys, log: Path, password: str | None) -> None:
        self._session, self._keys, self._log, self._password = session, keys, log, password
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._children: set[Process] = set()
        self._thaw = threading.Event()
        self._thaw.set()

    def open(self) -> int:
        try:
            import asyncssh  # noqa: F401  only to say early and clearly that it is missing
        except ImportError:
            raise ServerUnfit(
                "neither OpenSSH's sshd nor the package asyncssh is installed",
                host=HOST,
                step="loopback server",
                remedy="pip install asyncssh",
            ) from None
        self._attach_log()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="loopback-embedded", daemon=True)
        self._thread.start()
        self._acceptor = self._do(self._listen())
        return int(self._acceptor.get_port())

    def close(self) -> None:
        if not hasattr(self, "_thread"):
            return
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        logging.getLogger("asyncssh").removeHandler(self._handler)
        self._handler.close()

    def drop(self) -> None:
        self._do(self._abort())

    def freeze(self) -> None:
        self._thaw.clear()
        self._loop.call_soon_threadsafe(self._thaw.wait)

    def thaw(self) -> None:
        self._thaw.set()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_TIMEOUT_S)

    def _attach_log(self) -> None:
        self._handler = logging.FileHandler(self._log)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger = logging.getLogger("asyncssh")
        logger.addHandler(self._handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # it has a file of its own; a demo's terminal is not the place

    async def _listen(self) -> asyncssh.SSHAcceptor:
        import asyncssh

        return await asyncssh.create_server(
            make_policy(self._connections, self._session.account.name, self._password),
            HOST,
            0,
            server_host_keys=[str(self._keys.host)],
            authorized_client_keys=f"{self._keys.user}.pub",
            process_factory=self._serve,
            encoding=None,
            line_editor=False,
            window=8 * 1024 * 1024,
            max_pktsize=64 * 1024,
        )

    async def _abort(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    async def _shut(self) -> None:
        self._acceptor.close()
        await self._abort()
        await self._acceptor.wait_closed()
        own = asyncio.current_task()
        rest = [task for task in asyncio.all_tasks() if task is not own]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for child in list(self._children):  # asyncio can't let go of a child; what it started with setsid lives on
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            # Before the wait: what the child has started may hold the other ends, and wait() waits for them, too.
            _hang_up(child, 0, 1, 2)
            await child.wait()
        await asyncio.sleep(0)  # closed pipes need one more turn of the loop

    async def _serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """One command: pipes between the channel and the child, then its exit status or signal."""
        child = await self._spawn(process)
        self._children.add(child)
        stdin = asyncio.ensure_future(_feed(process, child))
        try:
            await asyncio.gather(_drain(child, 1, process.stdout), _drain(child, 2, process.stderr))
            status = await child.wait()
        finally:
            stdin.cancel()
        self._children.discard(child)
        with contextlib.suppress(OSError):  # the client may be gone
            if status < 0:
                process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
            else:
                process.exit(status)

    async def _spawn(self, process: asyncssh.SSHServerProcess[bytes]) -> Process:
        session = self._session
        client = process.get_extra_info("peername")
        environ = {
            **session.environ(),
            "USER": session.account.name,
            "LOGNAME": session.account.name,
            "SHELL": session.shell,
            "SSH_CLIENT": f"{client[0]} {client[1]} {self._acceptor.get_port()}",  # by it bash knows a login by SSH
        }
        argv = [session.shell, "-c", process.command] if process.command is not None else [session.shell, "-l"]
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            cwd=session.home,
            env=environ,
            start_new_session=True,
            limit=CHUNK,
            **_identity(session),
        )


def _identity(session: Session) -> dict[str, Any]:
    """Popen's arguments to become the session's account, if it isn't ours already."""
    account = session.account
    if account.uid == os.geteuid():
        return {}
    groups = os.getgrouplist(account.name, account.gid)
    return {"user": account.uid, "group": account.gid, "extra_groups": groups}


async def _feed(process: asyncssh.SSHServerProcess[bytes], child: Process) -> None:
    """Pass the client's bytes and signals on to the child, until either end closes."""
    import asyncssh

    assert child.stdin
    with contextlib.suppress(OSError, ProcessLookupError, asyncssh.Error):
        while True:
            try:
                data = await process.stdin.read(CHUNK)
            except asyncssh.SignalReceived as request:
                os.killpg(child.pid, signal.Signals[f"SIG{request.signal}"])
                continue
            except asyncssh.TerminalSizeChanged:
                continue
            if not data:
                break
            child.stdin.write(data)
            await child.stdin.drain()
    child.stdin.close()


async def _drain(child: Process, number: int, target: asyncssh.SSHWriter[bytes]) -> None:
    """Copy what the child says on descriptor 1 or 2; when the client is gone, close it: so the child learns of it."""
    source = child.stdout if number == 1 else child.stderr
    assert source
    while data := await source.read(CHUNK):
        try:
            target.write(data)
            await target.drain()
        except OSError:
            _hang_up(child, number)
            return


def _hang_up(child: Process, *numbers: int) -> None:
    """Close our ends of the child's pipes; asyncio's Process has no public way to do it."""
    for number in numbers:
        pipe = child._transport.get_pipe_transport(number)  # type: ignore[attr-defined]
        if pipe:
            pipe.close()


def make_policy(connections: set[asyncssh.SSHServerConnection], user: str, password: str | None) -> Any:
    """A server class for asyncssh: one account, its key, and its password if there is one."""
    import asyncssh

    class Policy(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self._conn = conn
            connections.add(conn)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.discard(self._conn)

        def password_auth_supported(self) -> bool:
            return password is not None

        def validate_password(self, username: str, given: str) -> bool:
            return password is not None and (username, given) == (user, password)

        async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            return False  # only the authorized key counts

        def begin_auth(self, username: str) -> bool:
            return True

    return Policy


def expected_kind(embedded: bool = False) -> str:
    """Which server would serve this process's own account, with the reason if it is not sshd."""
    reason = "asked for" if embedded else why_not_sshd(Account.find(None))
    return f"embedded ({reason})" if reason else f"{OpenSSH.kind} ({find_sshd()})"
