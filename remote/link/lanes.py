"""More agents over the login that stands: OpenSSH has 2 MiB of a channel on their way, which a long
line can't fill."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from remote.errors import RemoteError
from remote.link.link import Link
from remote.link.session import Session

LARGE = 32 << 20
"""Bytes of a file for several; below that one channel is done before others have begun."""
MOST = 7
"""With the first channel they are 8 of the 10 sessions that sshd allows by default."""


class Lanes:
    """`links` is empty where the server lets too few of them in. `pool` has a thread for each, and
    one for the first channel."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.pool = ThreadPoolExecutor(MOST + 1)
        self._opening = [self.pool.submit(self._open) for _ in range(MOST)]

    def _open(self) -> Link | None:
        link = self._session.lane()
        try:
            link.__enter__()
            link.wait_until_let_in()
        except RemoteError:
            link.__exit__(None, None, None)
            return None
        return link

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *error: object) -> None:
        for link in self._up():
            link.__exit__(None, None, None)
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _up(self) -> list[Link]:
        return [link for opening in self._opening if (link := opening.result()) is not None]

    @property
    def links(self) -> list[Link]:
        """Waits until they are open."""
        up = self._up()
        return up if len(up) > 2 else []
