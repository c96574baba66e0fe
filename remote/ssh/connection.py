"""A login to one host: by the system's ssh, or by paramiko where there is none."""

from __future__ import annotations

import logging
import shutil
from types import TracebackType
from typing import Protocol

from remote.errors import UsageError
from remote.ssh.target import Host, Target

log = logging.getLogger("remote.ssh")


class Channel(Protocol):
    """A running command.

    send() and receive() may be called from different threads; what two threads send does not mix.
    """

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it. Raises ConnectionLost when the server takes nothing for timeout_s."""

    def receive(self, limit: int) -> bytes:
        """Return what has arrived, 1 to `limit` bytes; b"" once the command has ended.

        Raises what went wrong with the login, ConnectionLost when nothing comes for timeout_s.
        """

    def errors(self) -> bytes:
        """The last 64 kB of stderr."""

    def exit_code(self) -> int | None:
        """After the output's end; None when the connection broke first."""

    def close(self) -> None:
        """End the command; never raises."""


class Way(Protocol):
    """A means of reaching a host."""

    host: Host

    @property
    def method(self) -> str:
        """publickey, password, …; "" where a login that was kept has been used."""

    @property
    def shared(self) -> bool:
        """Whether a second channel needs no second login."""

    def open(self) -> None: ...
    def start(self, command: str) -> Channel: ...
    def close(self) -> None: ...


class Connection:
    """A way to one host. `with` opens and closes it.

    open() and the first bytes of a command raise UsageError, Unreachable, HostKeyRefused,
    AuthenticationFailed or ConnectionLost.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._way = choose_way(target)

    def __enter__(self) -> Connection:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Connection({self.host.name!r})"

    @property
    def host(self) -> Host:
        return self._way.host

    @property
    def method(self) -> str:
        return self._way.method

    @property
    def shared(self) -> bool:
        return self._way.shared

    def open(self) -> None:
        self._way.open()

    def start(self, command: str) -> Channel:
        """Run a command, without a terminal, its stderr apart."""
        log.debug("%s: starting a command, %d characters", self.host.name, len(command))
        return self._way.start(command)

    def close(self) -> None:
        """Never raises, never waits."""
        self._way.close()


def choose_way(target: Target) -> Way:
    """Raises UsageError where OpenSSH is asked for and is not installed."""
    ssh = shutil.which("ssh") if target.program != "paramiko" else None
    if ssh is not None:
        from remote.ssh.openssh import OpenSSH

        return OpenSSH(target, ssh)
    if target.program == "openssh":
        raise UsageError(
            "remote.ssh is openssh, and there is no ssh program here",
            host=target.spec,
            remedy="install the OpenSSH client, or take that setting out",
        )
    from remote.ssh.fallback import Paramiko

    return Paramiko(target)
