"""One class per cause; each says what happened, where, and what to type next. The exit codes are
documented in the README."""

from __future__ import annotations


class RemoteError(Exception):
    """An expected failure, shown as one line. `host` and `step` say where, `remedy` what to type
    next. Holds no secret."""

    exit_code = 1
    usual_remedy: str | None = None

    def __init__(
        self,
        message: str,
        *,
        host: str | None = None,
        step: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.host = host
        self.step = step
        self.remedy = self.usual_remedy if remedy is None else remedy
        self.details: dict[str, object] = {}

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.host, self.step) if part)
        return "".join(
            [
                f"{where}: " if where else "",
                self.message,
                f" — {self.remedy}" if self.remedy else "",
            ]
        )


class UsageError(RemoteError):
    """The command line or a setting is wrong; nothing was sent."""

    exit_code = 2


class Unreachable(RemoteError):
    """No connection could be opened: name, route, port, banner or a key exchange that fails."""

    exit_code = 3


class ConnectionLost(RemoteError):
    """The connection broke, or went silent after the login. Repeating the command goes on from
    there."""

    exit_code = 4
    usual_remedy = "run the same command again"
    silent = False


class HostKeyRefused(RemoteError):
    """The server's key is unknown, changed, revoked or can't be checked."""

    exit_code = 5


class AuthenticationFailed(RemoteError):
    """The server refused every way to log in that we have."""

    exit_code = 6


class StartsOrEnds(AuthenticationFailed):
    """The server refused everybody, since it is being started or shut down."""


class ServerUnfit(RemoteError):
    """The server lacks something that we need: python, disk, a root of ours, permission."""

    exit_code = 7


class EnvironmentFailed(RemoteError):
    """The dependencies could not be installed or don't work together."""

    exit_code = 8


class GpuUnfit(RemoteError):
    """The GPU can't be used as asked: driver, torch build, device chosen."""

    exit_code = 9


class RunFailed(RemoteError):
    """The training ended without a result, or did not start."""

    exit_code = 10


class NotFound(RemoteError):
    """No such run, release or file on the server."""

    exit_code = 11


class TransferFailed(RemoteError):
    """What arrived is not what was announced, or there's no room for it here."""

    exit_code = 12


class ProtocolError(RemoteError):
    """The other end does not speak our protocol, or says impossible things."""

    exit_code = 13


INTERRUPTED = 130

BY_KIND: dict[str, type[RemoteError]] = {
    cls.__name__: cls
    for cls in (
        UsageError,
        ServerUnfit,
        EnvironmentFailed,
        GpuUnfit,
        RunFailed,
        NotFound,
        TransferFailed,
        ProtocolError,
    )
}
"""The classes that the agent may name in a refusal."""
