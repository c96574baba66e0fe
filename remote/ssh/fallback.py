"""The login where there is no ssh program, by paramiko's public interface. It has fewer features,
and says which are missing."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote.errors import (
    AuthenticationFailed,
    ConnectionLost,
    HostKeyRefused,
    RemoteError,
    ServerUnfit,
    Unreachable,
    UsageError,
)
from remote.screen.text import one_line
from remote.ssh.connection import Connection
from remote.ssh.target import Host, Spec, Target, parse_spec, require_files

if TYPE_CHECKING:
    import paramiko

# What paramiko finds worth an error we say ourselves; else Python would print it beside ours.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
MAX_ERRORS = 64 << 10
MISSING = (
    "proxyjump",
    "proxycommand",
    "knownhostscommand",
    "pkcs11provider",
    "gssapiauthentication",
    "revokedhostkeys",
)
"""Settings that change who is let in or trusted, and that only the ssh program understands."""
_accepted: dict[str, bytes] = {}
"""Keys that a person accepted in this process."""


class Paramiko(Connection):
    """A login that lasts as long as the command, straight to the server."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.method = ""
        self.shared = True
        self._client: paramiko.SSHClient | None = None

    def open(self) -> None:
        require_files(self.target)
        spec = parse_spec(self.target.spec)
        settings = read_config(spec, self.target.ssh_config)
        self.host = Host(
            self.target.spec, user_of(spec, settings), settings["hostname"], port_of(spec, settings)
        )
        try:
            self._log_in(spec, settings)
        except BaseException:
            self.close()
            raise

    def _log_in(self, spec: Spec, settings: dict[str, Any]) -> None:
        import paramiko

        missing = [key for key in MISSING if settings.get(key, "no").lower() not in ("no", "none")]
        if missing:
            raise UsageError(
                f"{missing[0]} in ssh_config needs the ssh program",
                host=spec.host,
                remedy="install the OpenSSH client",
            )
        self._client = client = paramiko.SSHClient()
        policy = Strict(self.target, settings)
        policy.load(client)
        files = [
            *map(os.path.expanduser, self.target.identities),
            *settings.get("identityfile", []),
        ]
        keys = [file for file in files if os.path.isfile(file)]
        secrets: dict[str, Any] = {
            "key_filename": keys,
            "password": self.target.password,
            "passphrase": self.target.passphrase,
        }
        for attempt in range(3):
            try:
                client.connect(
                    settings["hostname"],
                    port_of(spec, settings),
                    user_of(spec, settings),
                    look_for_keys=not files,
                    allow_agent=settings.get("identitiesonly", "no") != "yes",
                    timeout=self.target.timeout_s,
                    banner_timeout=self.target.timeout_s,
                    auth_timeout=self.target.timeout_s,
                    **secrets,
                )
                break
            except paramiko.AuthenticationException as error:
                if isinstance(error, paramiko.PasswordRequiredException):
                    secrets["passphrase"] = self._ask_passphrase(spec, attempt)
                    continue
                if attempt == 2 or not self.target.can_ask:
                    raise self._refused(
                        spec, f"permission denied ({one_line(str(error), 200)})"
                    ) from None
                secrets["password"] = ask(f"{user_of(spec, settings)}@{spec.host}'s password: ")
            except paramiko.BadHostKeyException as error:
                raise HostKeyRefused(
                    f"the server's key has CHANGED ({fingerprint(error.key)})",
                    host=spec.host,
                    remedy=f"if it was reinstalled, take its line out of {policy.files[0]}",
                ) from None
            except RemoteError:
                raise
            except paramiko.SSHException as error:
                if str(error) == "Invalid key":  # what a wrong passphrase is called
                    secrets["passphrase"] = self._ask_passphrase(spec, attempt)
                elif "No authentication methods" in str(error):
                    raise self._refused(
                        spec, "permission denied: there was no key to try"
                    ) from None
                else:
                    raise explain(error, spec, settings, self.target) from None
            except (OSError, EOFError) as error:
                raise explain(error, spec, settings, self.target) from None
        transport = client.get_transport()
        assert transport is not None
        transport.set_keepalive(max(1, int(self.target.timeout_s / 3)))
        self.method = "password" if secrets["password"] else "publickey"

    def _ask_passphrase(self, spec: Spec, attempt: int) -> str:
        if attempt == 2 or not self.target.can_ask:
            raise self._refused(
                spec, "a key is protected by a passphrase, and the right one was not given"
            )
        return ask(f"Passphrase for the key of {spec.host}: ")

    def _refused(self, spec: Spec, text: str) -> AuthenticationFailed:
        remedy = (
            f"choose a key with -i, or put yours on the server: fab -H {self.target.typed}"
            " setup-key"
        )
        return AuthenticationFailed(text, host=spec.host, step="login", remedy=remedy)

    def start(self, command: str, beside: bool = False) -> ParamikoChannel:
        import paramiko

        transport = self._client.get_transport() if self._client else None
        if transport is None:
            raise ConnectionLost("the connection is not open", host=self.host.name)
        # exec_command has no time limit of its own.
        limit = threading.Timer(self.target.timeout_s, transport.close)
        limit.daemon = True
        limit.start()
        begun = time.monotonic()
        try:
            channel = transport.open_session(window_size=16 << 20, timeout=self.target.timeout_s)
            channel.exec_command(command)
        except paramiko.ChannelException as error:
            remedy = "its sshd limits sessions (MaxSessions) or forbids this one"
            raise ServerUnfit(
                f"the server opens no session ({error.text})", host=self.host.name, remedy=remedy
            ) from None
        except (paramiko.SSHException, OSError, EOFError):
            silent = time.monotonic() - begun >= self.target.timeout_s
            text = (
                f"no answer for {self.target.timeout_s:g} s"
                if silent
                else "the connection was lost"
            )
            raise ConnectionLost(
                text, host=self.host.name, remedy="run the same command again"
            ) from None
        finally:
            limit.cancel()
        return ParamikoChannel(channel, self.host.name, self.target.timeout_s)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None


class ParamikoChannel:
    """A running command."""

    def __init__(self, channel: paramiko.Channel, host: str, timeout_s: float) -> None:
        self._channel, self._host, self._timeout_s = channel, host, timeout_s
        self._sending = threading.Lock()
        self._errors = bytearray()
        channel.settimeout(timeout_s)
        self._reading = threading.Thread(target=self._read_errors, daemon=True)
        self._reading.start()

    def _read_errors(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                try:
                    data = self._channel.recv_stderr(1 << 16)
                except TimeoutError:
                    continue
                if not data:
                    return
                self._errors += data
                del self._errors[:-MAX_ERRORS]

    def send(self, data: bytes | memoryview) -> None:
        try:
            with self._sending:
                self._channel.sendall(bytes(data))
        except (
            Exception
        ) as error:  # OSError, EOFError, SSHException: whatever it is, the session is over
            raise self._lost(error) from None

    def receive(self, limit: int) -> bytes:
        try:
            data = self._channel.recv(limit)
        except Exception as error:
            raise self._lost(error) from None
        if not data and self.exit_code() is None:
            raise self._lost(None)
        return data

    def _lost(self, error: Exception | None) -> ConnectionLost:
        text = (
            f"no answer for {self._timeout_s:g} s"
            if isinstance(error, TimeoutError)
            else "the connection was lost"
        )
        return ConnectionLost(text, host=self._host, remedy="run the same command again")

    def errors(self) -> bytes:
        if self._channel.exit_status_ready():
            self._reading.join(1.0)
        return bytes(self._errors)

    def exit_code(self) -> int | None:
        self._channel.status_event.wait(5.0)
        code = self._channel.recv_exit_status() if self._channel.exit_status_ready() else -1
        return code if code >= 0 else None

    def close(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._channel.close()


class Strict:
    """Paramiko's policy for a key that known_hosts does not hold: ask a person, or refuse."""

    def __init__(self, target: Target, settings: dict[str, Any]) -> None:
        self._target, self._settings = target, settings
        named = settings.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")
        # Paramiko takes the quotes off: what follows a blank is another file where it begins like a
        # path.
        self.files = [os.path.expanduser(part.strip('"')) for part in re.split(r" (?=[~/])", named)]

    def load(self, client: paramiko.SSHClient) -> None:
        client.set_missing_host_key_policy(self)  # type: ignore[arg-type]  # has the method that is called
        if self._lines("@revoked"):
            return  # paramiko passes over these: every key is ours to check
        for file in [*self.files, "/etc/ssh/ssh_known_hosts"]:
            with contextlib.suppress(OSError):
                client.load_system_host_keys(file)

    def _lines(self, marker: str) -> list[list[str]]:
        lines = []
        for file in [*self.files, "/etc/ssh/ssh_known_hosts"]:
            with contextlib.suppress(OSError):
                lines += [
                    line.split()
                    for line in Path(file).read_text("utf-8", "replace").splitlines()
                    if line.startswith(marker)
                ]
        return lines

    def _known(self, hostname: str, key: paramiko.PKey) -> bool:
        import paramiko

        held = paramiko.HostKeys()
        for file in [*self.files, "/etc/ssh/ssh_known_hosts"]:
            with contextlib.suppress(OSError):
                held.load(file)
        return held.check(hostname, key)

    def refuse_revoked(self, key: paramiko.PKey) -> None:
        """Whatever host the line is about: a key that somebody revoked is refused."""
        if any(key.get_base64() in line for line in self._lines("@revoked")):
            raise HostKeyRefused(
                "the server's key is revoked",
                host=self._target.spec,
                remedy="ask whoever runs the server",
            )

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        self.refuse_revoked(key)
        shown, strict = fingerprint(key), self._settings.get("stricthostkeychecking", "ask").lower()
        if (
            _accepted.get(hostname) == key.asbytes()
            or strict in ("no", "off")
            or self._known(hostname, key)
        ):
            return
        authority = (
            " (certificates of hosts need the ssh program)"
            if self._lines("@cert-authority")
            else ""
        )
        question = f"{hostname} is not known here; its key is {shown}. Go on?"
        if strict != "accept-new" and (
            strict == "yes" or not self._target.can_ask or not confirm(question)
        ):
            remedy = "compare the fingerprint with the server's own, then accept it at a terminal"
            raise HostKeyRefused(
                f"the server's key is not known here: {shown}{authority}",
                host=self._target.spec,
                remedy=remedy,
            )
        _accepted[hostname] = key.asbytes()
        file = Path(self.files[0])
        with contextlib.suppress(OSError):
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with file.open("a") as out:
                out.write(f"{hostname} {key.get_name()} {key.get_base64()}\n")


def read_config(spec: Spec, file: str | None) -> dict[str, Any]:
    """What ssh_config says of the host, as paramiko reads it: `Match exec` and tokens that it can't
    do are told."""
    import paramiko

    paths = [file] if file else ["~/.ssh/config", "/etc/ssh/ssh_config"]
    config = paramiko.SSHConfig()
    for path in paths:
        place = Path(path).expanduser()
        try:
            if place.is_file():
                config.parse(place.read_text("utf-8", "surrogateescape").splitlines())
        except paramiko.ConfigParseError as error:
            raise UsageError(
                f"ssh_config can't be read: {one_line(str(error), 200)}", host=spec.host
            ) from None
    try:
        found: dict[str, Any] = dict(config.lookup(spec.host))
    # a missing library for `Match exec`, an unknown token: paramiko raises several kinds
    except Exception as error:
        raise UsageError(
            f"ssh_config needs the ssh program here ({one_line(str(error), 200)})", host=spec.host
        ) from None
    found["identityfile"] = [
        os.path.expanduser(name.strip('"')) for name in found.get("identityfile", [])
    ]
    return found


def user_of(spec: Spec, settings: dict[str, Any]) -> str:
    return str(spec.user or settings.get("user") or getpass.getuser())


def port_of(spec: Spec, settings: dict[str, Any]) -> int:
    return int(spec.port or settings.get("port", 22))


def fingerprint(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.fingerprint}"


def ask(prompt: str) -> str:
    try:
        return getpass.getpass(prompt, stream=sys.stderr)
    except EOFError:
        raise AuthenticationFailed("nothing was entered", step="login") from None


def confirm(question: str) -> bool:
    sys.stderr.write(f"{question} (yes/no) ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def explain(error: Exception, spec: Spec, settings: dict[str, Any], target: Target) -> RemoteError:
    """One line for what went wrong before the login."""
    where, why = f"{settings['hostname']} port {port_of(spec, settings)}", one_line(str(error), 200)
    if isinstance(error, (EOFError, ConnectionResetError, BrokenPipeError)):
        text, remedy = "the connection was lost during the login", "run the same command again"
        return ConnectionLost(text, host=spec.host, step="login", remedy=remedy)
    if isinstance(error, socket.gaierror):
        text, remedy = (
            f"the name {settings['hostname']!r} is not known to the network",
            "check its spelling, the VPN",
        )
    elif isinstance(error, TimeoutError) or re.search(
        r"(?i)timed out|timeout|No existing session", why
    ):
        text, remedy = (
            f"{where} did not answer for {target.timeout_s:g} s",
            "the machine is off, or a firewall drops it",
        )
    elif "refused" in why or "Unable to connect" in why:
        text, remedy = f"{where} refuses connections ({why})", "check the port (user@host:port)"
    else:
        text, remedy = (
            f"{where} closed the connection before the login ({why})",
            "it may limit logins, or be no SSH server",
        )
    return Unreachable(text, host=spec.host, step="connect", remedy=remedy)
