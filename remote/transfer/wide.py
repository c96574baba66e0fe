"""Large files over several channels of one login, their pieces put in order here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from functools import partial
from typing import Any

from remote.agent.shared.trees import SYMLINK
from remote.errors import ConnectionLost, ProtocolError
from remote.link.answers import FetchHash, FetchLane
from remote.link.lanes import Lanes
from remote.link.link import Link
from remote.link.session import Session
from remote.transfer.manifest import RemoteFile
from remote.transfer.receiving import LocalBytes

UNIT = 512 << 10
AHEAD = 24 << 20
"""Bytes that may wait here in memory for those before them."""
LARGE = 32 << 20
"""Below that one channel is done before others have begun."""

Wanted = tuple[RemoteFile, "LocalBytes | None"]
Event = Callable[[dict[str, Any], bytes], None]


def is_large(file: RemoteFile, have: LocalBytes | None) -> bool:
    return file.mode != SYMLINK and file.size - (have.size if have else 0) >= LARGE


class WideFetch:
    """A run's files over the lanes, while the agent of the first channel hashes them."""

    def __init__(self, session: Session, lanes: Lanes, run: str) -> None:
        assert session.link is not None
        self._session, self._hasher = session, session.link
        self._pool, self._carriers = lanes.pool, lanes.links
        self._asked: dict[str, Any] = {"root": session.project.settings.root, "run": run}

    def fetch(self, wanted: Sequence[Wanted], event: Event) -> None:
        """Bring the files, as events of `fetch_read` would: file and offset, bytes in order, the
        hash of the whole at the end."""
        for file, have in wanted:
            whole = self._pool.submit(self._hash, self._hasher, file, file.size)
            offset = 0
            if (
                have is not None
                and have.size
                and self._hash(self._carriers[0], file, have.size) == have.digest.hexdigest()
            ):
                offset = have.size
            event({"file": file.path, "offset": offset}, b"")
            pieces = Pieces(offset)
            carrying = [
                self._pool.submit(self._carry, link, file, pieces, place)
                for place, link in self._places(offset)
            ]
            try:
                complete = self._hand_on(file, pieces, carrying, event)
            finally:
                pieces.stop()
            # A lane that is left in the middle of a shrunken file must be free before it is asked
            # for the next one.
            wait_for(carrying)
            # Parts that fit may still be parts of two states: the server reads the file as a whole,
            # on a lane of its own.
            event({"done": whole.result() if complete else None}, b"")

    def _places(self, offset: int) -> list[tuple[tuple[int, int], Link]]:
        count = len(self._carriers)
        return [
            ((offset + number * UNIT, count), link) for number, link in enumerate(self._carriers)
        ]

    def _hash(self, link: Link, file: RemoteFile, end: int) -> str | None:
        return link.ask(FetchHash, path=file.path, end=end, **self._asked).sha256

    def _carry(self, link: Link, file: RemoteFile, pieces: Pieces, place: tuple[int, int]) -> bool:
        """Bring every so-many-th piece. False where the file has become shorter."""
        start, step = place
        asked: dict[str, Any] = {
            "path": file.path,
            "start": start,
            "end": file.size,
            "unit": UNIT,
            "step": step,
        }

        def piece(fields: dict[str, Any], blob: bytes) -> None:
            at = fields.get("at")
            if (
                type(at) is not int
                or (at - start) % (UNIT * step)
                or len(blob) != min(UNIT, file.size - at)
            ):
                raise ProtocolError(
                    "the server sends a piece that was not asked for", host=self._session.host
                )
            pieces.put(at, blob)

        try:
            return not link.ask(FetchLane, piece, **asked, **self._asked).short
        finally:
            pieces.wake()

    def _hand_on(
        self, file: RemoteFile, pieces: Pieces, carrying: Sequence[Future[bool]], event: Event
    ) -> bool:
        while pieces.needed < file.size:
            blob = pieces.next(lambda: any(carried.done() for carried in carrying))
            if blob is not None:
                event({}, blob)
                continue
            ended = [carried for carried in carrying if carried.done()]
            if not all(carried.result() for carried in ended):
                return False
            if len(ended) == len(carrying) and not pieces.has_next():
                raise ConnectionLost("the server left a piece out", host=self._session.host)
            pieces.wait_for_next(partial(_more_ended, carrying, len(ended)))
        return True


def _more_ended(carrying: Sequence[Future[bool]], than: int) -> bool:
    return sum(carried.done() for carried in carrying) > than


class Pieces:
    """What has come of one file, and what is needed next. Whoever is too far ahead waits."""

    def __init__(self, offset: int) -> None:
        self.needed = offset
        self._changed = threading.Condition()
        self._held: dict[int, bytes] = {}
        self._stopped = False

    def put(self, at: int, blob: bytes) -> None:
        with self._changed:
            while at >= self.needed + AHEAD and not self._stopped:
                self._changed.wait()
            if self._stopped:
                raise ConnectionLost("the fetch has ended")
            self._held[at] = blob
            self._changed.notify_all()

    def has_next(self) -> bool:
        with self._changed:
            return self.needed in self._held

    def next(self, ended: Callable[[], bool]) -> bytes | None:
        """The bytes that follow; None once a lane has ended and they are not here."""
        with self._changed:
            while self.needed not in self._held and not ended():
                self._changed.wait(1.0)
            blob = self._held.pop(self.needed, None)
            self.needed += len(blob or b"")
            self._changed.notify_all()
        return blob

    def wait_for_next(self, changed: Callable[[], bool]) -> None:
        with self._changed:
            while self.needed not in self._held and not changed():
                self._changed.wait(1.0)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
