"""Opens the byte stream to a server: TCP, a ProxyCommand, or a channel through a jump host."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar, cast

from remote.errors import Unreachable, UsageError
from remote.screen.text import one_line
from remote.ssh.ssh_config import HostConfig

T = TypeVar("T")
FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


def within(timeout_s: float, work: Callable[[], T]) -> T:
    """The result of `work`, which can't be interrupted, or TimeoutError."""
    box: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            box.put((work(), None))
        except BaseException as error:  # handed over to the one who waits
            box.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = box.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return cast("T", value)


def connect_tcp(config: HostConfig, timeout_s: float) -> socket.socket:
    """The first address that answers. Raises Unreachable with the cause."""
    limit = config.connect_timeout_s or timeout_s
    deadline = time.monotonic() + limit
    addresses = _resolve(config, limit)
    failure: OSError = TimeoutError()
    for index, (family, kind, proto, _, address) in enumerate(addresses):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        sock = socket.socket(family, kind, proto)
        try:
            # One dead address (often the IPv6 one) must not use up the time of the others.
            sock.settimeout(max(0.05, left / (len(addresses) - index)))
            if config.bind_address:
                sock.bind((config.bind_address, 0))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError as error:
            sock.close()
            failure = error
            continue
        return sock
    raise unreachable(config, failure, limit)


def _resolve(config: HostConfig, timeout_s: float) -> list[Any]:
    family = FAMILIES.get(config.family, socket.AF_UNSPEC)
    try:
        return within(timeout_s, lambda: socket.getaddrinfo(config.hostname, config.port, family, socket.SOCK_STREAM))
    except (socket.gaierror, UnicodeError):
        raise Unreachable(
            f"the name {config.hostname!r} is not known to the network",
            host=config.name,
            step="connect",
            remedy="check its spelling, the VPN, or HostName in ~/.ssh/config",
        ) from None
    except TimeoutError:
        raise Unreachable(f"the name server did not answer for {timeout_s:g} s", host=config.name, step="connect") from None


def unreachable(config: HostConfig, error: OSError, timeout_s: float) -> Unreachable:
    """What a failed connect means."""
    where = f"{config.hostname} port {config.port}"
    if isinstance(error, ConnectionRefusedError):
        message, remedy = (
            f"{where} refuses connections",
            "no SSH server listens there: check the port (user@host:port), or whether it still starts",
        )
    elif isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        message, remedy = f"{where} did not answer for {timeout_s:g} s", "the machine is off, or a firewall drops the connection"
    elif error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        message, remedy = f"there is no route to {where}", "check the network and the VPN"
    else:
        message, remedy = f"no connection to {where}: {error.strerror or error}", None
    return Unreachable(message, host=config.name, step="connect", remedy=remedy)


class ProxyProcess:
    """A ProxyCommand as a socket: its stdin and stdout are one end of a pair."""

    def __init__(self, config: HostConfig) -> None:
        if os.name == "nt":
            raise UsageError("ProxyCommand can't be used on Windows", host=config.name, remedy="use ProxyJump in ~/.ssh/config")
        assert config.proxy_command is not None
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._socket, theirs = socket.socketpair()
        with theirs:
            # A line of the user's own ssh_config, which by its contract is run by a shell.
            self._process = subprocess.Popen(
                f"exec {config.proxy_command}",
                shell=True,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._errors,
                start_new_session=True,
            )

    def recv(self, size: int) -> bytes:
        return self._socket.recv(size)

    def send(self, data: bytes) -> int:
        return self._socket.send(data)

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)

    def said(self) -> str:
        """The end of its stderr, for an error."""
        with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
            self._process.wait(0.5)
        try:
            self._errors.seek(0)
            return one_line(self._errors.read()[-300:].decode("utf-8", "replace"), 300)
        except (OSError, ValueError):
            return ""

    def close(self) -> None:
        self._socket.close()
        if self._process.poll() is None:
            self._process.terminate()
        threading.Thread(target=self._process.wait, daemon=True).start()
