"""Large files over several channels of one login, their pieces put in order here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any

from remote.agent.shared.trees import SYMLINK
from remote.errors import ConnectionLost, ProtocolError
from remote.link.answers import FetchHash, FetchLane
from remote.link.lanes import LARGE, Lanes
from remote.link.link import Link
from remote.link.session import Session
from remote.transfer.manifest import RemoteFile
from remote.transfer.receiving import LocalBytes

UNIT = 512 << 10
AHEAD = 24 << 20
"""Bytes that may wait here in memory for those before them."""

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
        """Fetch the files, as events of `fetch_read` would: file and offset, bytes in order, the
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
                self._pool.submit(self._carry, link, file, pieces, offset + number * UNIT)
                for number, link in enumerate(self._carriers)
            ]
            for carried in carrying:
                carried.add_done_callback(pieces.wake)
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

    def _hash(self, link: Link, file: RemoteFile, end: int) -> str | None:
        return link.ask(FetchHash, path=file.path, end=end, **self._asked).sha256

    def _carry(self, link: Link, file: RemoteFile, pieces: Pieces, start: int) -> bool:
        """Fetch every so-many-th piece. False where the file has become shorter."""
        step = len(self._carriers)
        asked = self._asked | {"path": file.path, "start": start, "end": file.size}

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

        return not link.ask(FetchLane, piece, unit=UNIT, step=step, **asked).short

    def _hand_on(
        self, file: RemoteFile, pieces: Pieces, carrying: Sequence[Future[bool]], event: Event
    ) -> bool:
        """False where the file has become shorter."""

        def is_short() -> bool:
            return not all(carried.result() for carried in carrying if carried.done())

        def is_over() -> bool:
            return is_short() or all(carried.done() for carried in carrying)

        while pieces.needed < file.size:
            blob = pieces.next(is_over)
            if blob is not None:
                event({}, blob)
            elif is_short():
                return False
            else:
                raise ConnectionLost("the server left a piece out", host=self._session.host)
        return True


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

    def next(self, is_over: Callable[[], bool]) -> bytes | None:
        """The bytes that follow; None once nothing comes any more and they are not here."""
        with self._changed:
            while self.needed not in self._held and not is_over():
                self._changed.wait()
            blob = self._held.pop(self.needed, None)
            self.needed += len(blob or b"")
            self._changed.notify_all()
        return blob

    def wake(self, _: object = None) -> None:
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
        self.wake()
