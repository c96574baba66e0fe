"""A login to one host, whoever makes it: what one can ask of it, and how long it may take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from remote.errors import ConnectionLost
from remote.ssh.target import Host, Target

if TYPE_CHECKING:
    from typing_extensions import Self

LOGIN_S = 150.0
"""A login that asks somebody something, or shows an address to open; sshd's own limit is 120 s."""
RESOLVE_TIMEOUT_S = 15.0
"""For reading ssh_config, whose `Match exec` runs programs."""
MAX_ERRORS = 64 << 10
"""Bytes of a command's stderr that are held, its last ones."""

NEVER_HEARD = (
    "run the same command again; where the login is slow, set a longer remote.timeout_s; ~/.bashrc"
    " there must start no other program and read no input (`read`, `ssh-add`)"
)


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
        """The last 64 KiB of stderr."""

    def exit_code(self) -> int | None:
        """After the output's end; None when the connection broke first."""

    def close(self) -> None:
        """End the command; never raises."""


class Connection(ABC):
    """A way to one host. `with` opens and closes it.

    open() and the first bytes of a command raise UsageError, Unreachable, HostKeyRefused,
    AuthenticationFailed or ConnectionLost.
    """

    # publickey, password, …; "" where a login that was kept has been used.
    method: str
    # Whether a second command needs no second login.
    shared: bool

    def __init__(self, target: Target) -> None:
        self.target = target
        self.host = Host(target.spec)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def start(self, command: str, beside: bool = False) -> Channel:
        """Run a command, without a terminal, its stderr apart. `beside`: over the login that
        stands, or not at all."""

    @abstractmethod
    def close(self) -> None:
        """Never raises, never waits long."""


def silence(host: str, timeout_s: float, spoke: bool) -> ConnectionLost:
    """`spoke`: whether anything had come before."""
    lost = ConnectionLost(
        f"no answer for {timeout_s:g} s",
        host=host,
        step=None if spoke else "login",
        remedy=None if spoke else NEVER_HEARD,
    )
    lost.silent = True
    return lost
