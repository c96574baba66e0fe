"""A login to one host, done once: settings, jump hosts, host keys, deadlines. Only the connection room knows paramiko."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from remote.errors import AuthenticationFailed, ConnectionLost, Unreachable, UsageError
from remote.screen.text import one_line
from remote.ssh.ssh_config import HostConfig, parse_spec, resolve

if TYPE_CHECKING:
    from remote.ssh.channel import Stream
    from remote.ssh.identities import Identity, Secrets
    from remote.ssh.transport import Transport

DEFAULT_TIMEOUT_S = 30.0
MAX_JUMPS = 8


@dataclass(frozen=True)
class Target:
    """One host as typed, with what Fabric's command line said about it."""

    spec: str
    identities: tuple[str, ...] = ()
    ssh_config: str | None = None
    password: str | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)
    # The longest wait for any single answer of the network.
    timeout_s: float = DEFAULT_TIMEOUT_S
    # Whether somebody can be asked; None: when stdin is a terminal.
    interactive: bool | None = None


@dataclass(frozen=True)
class Host:
    """Who is at the other end; `name` is what the user typed. The rest is known once the connection is open."""

    name: str
    user: str | None = None
    hostname: str | None = None
    port: int | None = None


class Asker(Protocol):
    """Whoever answers questions during a login."""

    def confirm(self, text: str) -> bool: ...
    def secret(self, prompt: str) -> str: ...


class TerminalAsker:
    """Asks on the terminal, one question at a time even when several hosts are logged in to at once."""

    _one_at_a_time = threading.Lock()

    def confirm(self, text: str) -> bool:
        with self._one_at_a_time:
            while True:
                sys.stderr.write(f"{text} (yes/no) ")
                sys.stderr.flush()
                answer = sys.stdin.readline()
                if not answer or answer.strip().lower() in ("n", "no"):
                    return False
                if answer.strip().lower() in ("y", "yes"):
                    return True

    def secret(self, prompt: str) -> str:
        import getpass

        with self._one_at_a_time:
            return getpass.getpass(prompt, stream=sys.stderr)


def targets_from_fabric() -> list[Target]:
    """The hosts of `fab -H`, in order, with what `-i`, `-S`, `-t` and the two prompt options gave. Empty without -H."""
    from fabric.main import program

    core = getattr(program, "core", None)
    if not core:
        return []
    args = core[0].args
    given = program.config.get("connect_kwargs", {})
    timeout = args["connect-timeout"].value
    return [
        Target(
            spec=spec.strip(),
            identities=tuple(args["identity"].value or ()),
            ssh_config=args["ssh-config"].value,
            password=given.get("password"),
            passphrase=given.get("passphrase"),
            timeout_s=float(timeout) if timeout else DEFAULT_TIMEOUT_S,
        )
        for spec in (args["hosts"].value or "").split(",")
        if spec.strip()
    ]


class Connection:
    """An SSH login. Constructing does nothing; `with` opens and closes.

    open() raises UsageError, Unreachable, HostKeyRefused, AuthenticationFailed or ConnectionLost. Once open it may be
    used from several threads.
    """

    def __init__(self, target: Target, ask: Asker | None = None) -> None:
        self.target = target
        self.host = Host(target.spec)
        interactive = target.interactive if target.interactive is not None else bool(sys.stdin and sys.stdin.isatty())
        self._ask = (ask or TerminalAsker()) if interactive else None
        self._transports: list[Transport] = []
        self._session: Stream | None = None
        self.by_password = False
        self._prepared: tuple[list[Identity], Secrets, list[str]] | None = None

    def __enter__(self) -> Connection:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Connection({self.host.name!r})"

    def open(self) -> None:
        config = resolve(parse_spec(self.target.spec), self.target.ssh_config, self.target.identities)
        self.host = Host(self.target.spec, config.user, config.hostname, config.port)
        try:
            self._open_chain(config)
        except BaseException:
            self.close()
            raise

    def _open_chain(self, config: HostConfig) -> None:
        hops = jump_chain(config, self.target.ssh_config)
        for number, hop in enumerate([*hops, config]):
            last = number == len(hops)
            transport = self._handshake(hop, last)
            self._transports.append(transport)
            self._log_in(transport, hop, last)

    def _handshake(self, config: HostConfig, last: bool) -> Transport:
        from remote.ssh import host_keys
        from remote.ssh.transport import Transport, Wire

        sock = self._dial(config)
        wire = Wire(sock, self.target.timeout_s)
        try:
            known = host_keys.read_known(config)
            transport = Transport(wire, self.target.timeout_s, host_keys.preferred_algorithms(known, config.host_key_algorithms))
            transport.handshake(meanwhile=lambda: self._prepare(config, last))
        except Exception as error:
            said = sock.said() if hasattr(sock, "said") else ""
            wire.close()
            raise explain_handshake(error, wire, config, self.target.timeout_s, said) from error
        try:
            blob = transport.get_remote_server_key().asbytes()
            host_keys.check(config, known, blob, self._ask.confirm if self._ask else None)
        except BaseException:
            transport.close()
            raise
        transport.set_keepalive(config.keepalive_s)
        return transport

    def _prepare(self, config: HostConfig, last: bool) -> None:
        """Keys are read while the network is busy with the key exchange."""
        from remote.ssh.identities import Secrets, collect

        given = self.target if last else None
        secrets = Secrets(
            config,
            given.password if given else None,
            self.target.passphrase,
            self._ask.secret if self._ask else None,
            f"{config.user}@{config.name}",
        )
        notes: list[str] = []
        self._prepared = (collect(config, secrets, notes), secrets, notes)

    def _log_in(self, transport: Transport, config: HostConfig, last: bool) -> None:
        from remote.ssh.login import Login

        assert self._prepared is not None
        (identities, secrets, notes), self._prepared = self._prepared, None
        session = Login(transport, config, identities, secrets, notes).run(with_session=last)
        if last:
            self._session, self.by_password = session, secrets.password_worked

    def _dial(self, config: HostConfig) -> Any:
        from remote.ssh.dial import ProxyProcess, connect_tcp

        if self._transports:
            return self._through(self._transports[-1], config)
        return ProxyProcess(config) if config.proxy_command else connect_tcp(config, self.target.timeout_s)

    def _through(self, transport: Transport, config: HostConfig) -> Any:
        import struct

        from remote.errors import ServerUnfit
        from remote.ssh.channel import StreamSocket

        host, origin = config.hostname.encode(), b"127.0.0.1"
        extra = struct.pack(">I", len(host)) + host + struct.pack(">II", config.port, len(origin)) + origin + struct.pack(">I", 0)
        stream = transport.open_stream("direct-tcpip", extra)
        try:
            stream.wait_open(config.name)
        except ServerUnfit as error:
            raise Unreachable(
                f"the jump host can't reach {config.hostname} port {config.port} ({error.message})",
                host=config.name,
                step="connect",
            ) from None
        return StreamSocket(stream, config.name)

    def start(self, command: str) -> Channel:
        """Run a command: no terminal, stderr apart. Doesn't wait for the server's consent; receive() tells of a refusal."""
        if not self._transports:
            raise ConnectionLost("the connection is not open", host=self.host.name)
        transport = self._transports[-1]
        stream, self._session = self._session or transport.open_stream("session"), None
        stream.wait_open(self.host.name)
        stream.request_exec(command)
        return Channel(stream, self.host.name, self.target.timeout_s)

    def close(self) -> None:
        """Never raises, never waits."""
        for transport in reversed(self._transports):
            transport.close()
        self._transports.clear()
        self._session = None


class Channel:
    """A running command. send() and receive() may be called from different threads; frames of two senders don't mix."""

    def __init__(self, stream: Stream, host: str, timeout_s: float) -> None:
        self._stream = stream
        self._host = host
        self._timeout_s = timeout_s

    def send(self, data: bytes | memoryview) -> None:
        """All of it. ConnectionLost when the server takes nothing for timeout_s, or the connection breaks."""
        self._stream.send(data, self._host)

    def receive(self, limit: int, timeout_s: float | None = None) -> bytes:
        """What has arrived, 1 to `limit` bytes; b"" once the command has closed its output.

        ConnectionLost when nothing comes for timeout_s or the connection breaks, ServerUnfit when the command was refused.
        """
        return self._stream.receive(limit, self._timeout_s if timeout_s is None else timeout_s, self._host)

    def errors(self) -> bytes:
        """The last 64 kB of stderr."""
        return self._stream.errors()

    def exit_code(self) -> int | None:
        """After the output's end; 128 + n for signal n; None when the connection broke first."""
        return self._stream.exit_code()

    def close(self) -> None:
        self._stream.close()


def jump_chain(config: HostConfig, ssh_config: str | None, depth: int = 0) -> list[HostConfig]:
    """The hosts to go through, outermost first. Only the first one's own jump hosts or ProxyCommand count, as in OpenSSH."""
    if not config.jumps:
        return []
    if depth >= MAX_JUMPS:
        raise UsageError("the jump hosts in ssh_config lead in a circle", host=config.name)
    hops = [resolve(parse_spec(text), ssh_config) for text in config.jumps]
    return [*jump_chain(hops[0], ssh_config, depth + 1), *hops]


def explain_handshake(error: Exception, wire: Any, config: HostConfig, timeout_s: float, proxy_said: str = "") -> Exception:
    """One line for what went wrong between the first byte and the host key."""
    import paramiko

    def fail(message: str, remedy: str | None = None) -> Unreachable:
        return Unreachable(message, host=config.name, step="key exchange", remedy=remedy)

    if isinstance(error, (UsageError, Unreachable, AuthenticationFailed)):
        return error
    where = f"{config.hostname} port {config.port}"
    said = one_line(wire.greeting.decode("utf-8", "replace"), 200)
    if config.proxy_command and not wire.greeting:
        return fail(
            f"the ProxyCommand brought no connection{f': {proxy_said}' if proxy_said else ''}", "try `ssh` with this host by hand"
        )
    if wire.fault:
        return fail(f"{where}: {wire.fault}", "check the port" if "no SSH" in wire.fault else None)
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        return fail(
            f"{where} offers only outdated cryptography ({error})",
            "update the server's OpenSSH, or allow ed25519/rsa-sha2 host keys, curve25519 and AES in its sshd_config",
        )
    if isinstance(error, TimeoutError) or "timed out" in str(error):
        return fail(
            f"{where} accepted the connection but then said nothing for {timeout_s:g} s",
            "the server hangs, or no SSH server listens there",
        )
    if wire.greeted and isinstance(error, (EOFError, OSError)):
        return ConnectionLost("the connection was lost before the login", host=config.name, remedy="run the same command again")
    if isinstance(error, (EOFError, OSError, paramiko.SSHException)):
        why = f", saying {said!r}" if said else ""
        return fail(
            f"{where} closed the connection before the login{why}",
            "it may limit logins (MaxStartups) or block your address: wait a moment",
        )
    return error
