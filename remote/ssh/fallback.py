"""The login where there is no ssh program, by Fabric's connection on paramiko. It has fewer
features, and says which are missing."""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import os
import re
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import fabric
import paramiko

from remote.errors import AuthenticationFailed, ConnectionLost, ServerUnfit, UsageError
from remote.screen.text import one_line
from remote.ssh.askpass import Answers, ask_person
from remote.ssh.connection import LOGIN_S, MAX_ERRORS, RESOLVE_TIMEOUT_S, Connection, silence
from remote.ssh.known_hosts import Strict
from remote.ssh.said import explain
from remote.ssh.target import Host, Spec, Target, parse_spec, require_files

# What paramiko finds worth an error we say ourselves; else Python would print it beside ours.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
PIECE = 256 << 10
MISSING = re.compile(
    "(hostkeyalias|identityagent|knownhostscommand|pkcs11provider|revokedhostkeys) (?!none$)"
    "|identityfile .*%"
)
"""Settings that change who is let in or trusted, and that only the ssh program understands."""
WORDS = {
    TimeoutError: "Connection timed out ({why})",
    paramiko.ChannelException: "stdio forwarding failed ({why})",
    socket.gaierror: "Could not resolve hostname ({why})",
    paramiko.ssh_exception.IncompatiblePeer: "Unable to negotiate ({why})",
}
"""What OpenSSH calls an error of paramiko."""


class Paramiko(Connection):
    """A login that lasts as long as the command, by way of the jump hosts that ssh_config names."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.method = ""
        self.shared = True
        self._hops: Mapping[str, fabric.Connection] = {}

    def open(self) -> None:
        require_files(self.target)
        spec = parse_spec(self.target.spec)
        try:
            config = read_config(spec, self.target.ssh_config)
            with ThreadPool(1) as pool:
                self._hops = pool.apply_async(route, (spec.host, config)).get(RESOLVE_TIMEOUT_S)
        except RecursionError:
            raise UsageError("ProxyJump leads in a circle", host=spec.host) from None
        # a missing library for `Match exec`, a port that is no number: they raise several kinds
        except Exception as error:
            why = one_line(str(error), 200) or "for a `Match exec` that hangs"
            text = f"ssh_config needs the ssh program here ({why})"
            raise UsageError(text, host=spec.host, remedy="install the OpenSSH client") from None
        # -i and what Fabric asked for are meant for the last host.
        between = replace(self.target, identities=(), password=None, passphrase=None)
        try:
            for name, hop in self._hops.items():
                last = name == spec.host
                self._log_in(hop, self.target if last else replace(between, spec=name))
        except BaseException:
            self.close()
            raise

    def _log_in(self, hop: fabric.Connection, goal: Target) -> None:
        self.host = host = Host(goal.spec, hop.user, hop.host, hop.port)
        hop.connect_timeout = goal.timeout_s
        for may_ask in (goal.can_ask, goal.can_ask, False):
            answers = Answers(goal, host)
            error = attempt(hop, goal, answers)
            if error is None:
                hop.transport.set_keepalive(max(1, int(goal.timeout_s / 3)))
                self.method = "publickey" if goal.password is None else "password"
                return
            secret = wanted(error)
            if secret is None or not may_ask:
                by_proxy = hop.ssh_config.get("proxycommand")
                log = "Connection closed by UNKNOWN port 65535\n" if by_proxy else ""
                raise explain(log + as_ssh_says(error), b"", host, goal)
            if answers.asked:  # and told something wrong
                continue
            question = "passphrase of the key" if secret == "passphrase" else secret
            answer = ask_person(f"{hop.user}@{hop.original_host}'s {question}: ")
            if answer is None:
                raise AuthenticationFailed("nothing was entered", step="login")
            goal = replace(goal, **{secret: answer})  # type: ignore[arg-type]  # both are text

    def start(self, command: str, beside: bool = False) -> ParamikoChannel:
        transport = [*self._hops.values()][-1].transport
        # exec_command has no time limit of its own.
        limit = threading.Timer(self.target.timeout_s, transport.close)
        limit.daemon = True
        limit.start()
        begun = time.monotonic()
        try:
            channel = transport.open_session(window_size=16 << 20)
            channel.exec_command(command)
        except paramiko.ChannelException as error:
            text = f"the server opens no session ({error.text})"
            remedy = "its sshd limits sessions (MaxSessions) or forbids this one"
            raise ServerUnfit(text, host=self.host.name, remedy=remedy) from None
        except (paramiko.SSHException, OSError, EOFError):
            if time.monotonic() - begun >= self.target.timeout_s:
                raise silence(self.host.name, self.target.timeout_s, spoke=False) from None
            raise ConnectionLost("the connection was lost", host=self.host.name) from None
        finally:
            limit.cancel()
        return ParamikoChannel(channel, self.host.name, self.target.timeout_s)

    def close(self) -> None:
        for hop in reversed([*self._hops.values()]):
            hop.client.close()
        self._hops = {}


class ParamikoChannel:
    """A running command."""

    def __init__(self, channel: paramiko.Channel, host: str, timeout_s: float) -> None:
        self._channel, self._host, self._timeout_s = channel, host, timeout_s
        self._sending = threading.Lock()
        self._errors = bytearray()
        self._spoke = False
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
        view = memoryview(data).cast("B")
        try:
            with self._sending:
                for at in range(0, len(view), PIECE):  # paramiko copies what is left, each time
                    self._channel.sendall(bytes(view[at : at + PIECE]))
        except Exception as error:  # OSError, EOFError, SSHException: the session is over
            raise self._lost(error) from None

    def receive(self, limit: int) -> bytes:
        try:
            data = self._channel.recv(limit)
        except Exception as error:
            raise self._lost(error) from None
        if not data and self.exit_code() is None:
            raise self._lost(None)
        self._spoke = True
        return data

    def _lost(self, error: Exception | None) -> ConnectionLost:
        if isinstance(error, TimeoutError):
            return silence(self._host, self._timeout_s, self._spoke)
        return ConnectionLost("the connection was lost", host=self._host)

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


class Asking(paramiko.Transport):
    """Where paramiko would print a server's questions and read stdin, `answers` gets them."""

    def __init__(self, answers: Answers, *socket: Any, **settings: Any) -> None:
        super().__init__(*socket, **settings)
        self._answers = answers

    def auth_password(self, username: str, *how: Any, **more: Any) -> list[str]:
        if left := super().auth_password(username, *how, **more):  # which paramiko passes over
            self._answers.used.add("password")
            left = self.auth_interactive(username, None)
        return left

    def auth_interactive(self, username: str, handler: object, submethods: str = "") -> list[str]:
        self.auth_timeout = LOGIN_S  # somebody types
        return super().auth_interactive(username, self._answers.reply, submethods)


def attempt(hop: fabric.Connection, goal: Target, answers: Answers) -> Exception | None:
    """Returns what kept us out. Raises HostKeyRefused."""
    hop.connect_kwargs |= how(hop, goal)
    hop.connect_kwargs["transport_factory"] = functools.partial(Asking, answers)
    policy = Strict(goal, hop.ssh_config)
    policy.apply(hop.client)
    if command := hop.ssh_config.get("proxycommand"):
        hop.connect_kwargs["sock"] = run_proxy(command)
    begun = time.monotonic()
    try:
        hop.open()
    except paramiko.BadHostKeyException as error:
        raise policy.changed(error.hostname, error.key) from None
    except (paramiko.SSHException, OSError, EOFError) as error:
        silent = time.monotonic() - begun >= goal.timeout_s
        return TimeoutError() if silent and wanted(error) is None else error
    return None


def how(hop: fabric.Connection, goal: Target) -> dict[str, Any]:
    settings = hop.ssh_config
    own = [] if goal.only_key else settings.get("identityfile", [])
    named = [*goal.identities, *own]
    files = [os.path.expanduser(name.strip('"')) for name in named]
    # An IdentityAgent that is not refused says none.
    alone = settings.get("identitiesonly", "no") == "yes" or "identityagent" in settings
    alone = alone or goal.only_key
    limits = ("banner_timeout", "auth_timeout", "channel_timeout")
    return {
        "key_filename": [file for file in files if os.path.isfile(file)],
        "look_for_keys": not files,
        "allow_agent": not alone,
        "password": goal.password,
        "passphrase": goal.passphrase,
        **dict.fromkeys(limits, goal.timeout_s),
    }


def read_config(spec: Spec, file: str | None) -> fabric.Config:
    """What ssh_config says, as paramiko reads it; what was typed before the host goes first."""
    typed = {"User": spec.user, "Port": spec.port}
    rules = paramiko.SSHConfig()
    rules.parse([f"Host {spec.host}", *(f"{key} {value}" for key, value in typed.items() if value)])
    for place in [file] if file else ["~/.ssh/config", "/etc/ssh/ssh_config"]:
        path = Path(place).expanduser()
        rules.parse(read_lines(path, Path("~/.ssh").expanduser() if file else path.parent))
    return fabric.Config(ssh_config=rules, lazy=True)


def read_lines(file: Path, beside: Path) -> Iterator[str]:
    """With those of the files that it includes at its top, which paramiko passes over."""
    block = ""
    for line in file.read_text("utf-8", "surrogateescape").splitlines() if file.is_file() else ():
        word, value = (*re.split(r"[\s=]+", line.strip(), maxsplit=1), "")[:2]
        if word.lower() == "include":
            for name in shlex.split(value):
                for path in sorted(glob.glob(os.path.expanduser(name), root_dir=beside)):
                    if block:
                        raise ValueError(f"Include under {block.strip()}")
                    yield from read_lines(beside / path, beside)
            line = block or "Host *"
        elif word.lower() in ("host", "match"):
            block = line
        yield line


def route(
    name: str, config: fabric.Config, before: Mapping[str, fabric.Connection] = {}
) -> dict[str, fabric.Connection]:
    """A host behind its jump hosts, in the order in which they are visited; none is open.

    Fabric would visit `ProxyJump a,b` from behind, and takes `none` for a host.
    """
    hop = fabric.Connection(
        name,
        config=config,
        gateway=False,
        forward_agent=False,
        connect_timeout=1,  # set later, as are these
        connect_kwargs={"compress": False},
    )
    settings = hop.ssh_config
    for key, value in settings.items():
        if MISSING.match(line := f"{key} {value}"):
            raise ValueError(line)
    jumps = settings.get("proxyjump", "none")
    if not before and jumps.lower() != "none":
        for jump in jumps.split(","):
            before = route(jump.strip(), config, before)
    if before:
        hop.gateway = [*before.values()][-1]
    return {**before, name: hop}


def run_proxy(command: str) -> socket.socket:
    """What a ProxyCommand connects, run by a shell as OpenSSH does."""
    ours, theirs = socket.socketpair()
    with theirs:
        end = theirs.fileno()
        subprocess.Popen(f"exec {command}", shell=True, stdin=end, stdout=end)
    return ours


def wanted(error: Exception) -> str | None:
    """What a person could still give."""
    # "Invalid key" is what a wrong passphrase is called.
    if isinstance(error, paramiko.PasswordRequiredException) or str(error) == "Invalid key":
        return "passphrase"
    refused = isinstance(error, paramiko.AuthenticationException)
    return "password" if refused or "No authentication methods" in str(error) else None


def as_ssh_says(error: Exception) -> str:
    """An error of paramiko in OpenSSH's words, for which causes and remedies are known."""
    why = one_line(str(error), 200)
    if wanted(error) == "passphrase":
        return "Permission denied (a key has a passphrase, and the right one was not given)"
    if wanted(error) == "password":
        return f"Permission denied ({why})"
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        refused = any(isinstance(part, ConnectionRefusedError) for part in error.errors.values())
        return f"{'Connection refused' if refused else 'No route to host'} ({why})"
    words = next((words for kind, words in WORDS.items() if isinstance(error, kind)), "{why}")
    return words.format(why=why)
