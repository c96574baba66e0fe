"""Contents on their way to the server, with the progress shown."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import InitVar, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from remote.agent.shared.protocol import PIECE
from remote.link.answers import ContentPiece
from remote.link.decoding import decode
from remote.link.events import Ready
from remote.link.lanes import LARGE, MOST, Lanes
from remote.link.link import Link, Upload
from remote.link.session import Session
from remote.records import FileEntry
from remote.release.release import content_of, frame_of, upload_frames
from remote.screen.text import duration, show

PROBE = 2 * PIECE
"""How fast one channel is, is measured with the beginning of the first large file."""
NARROW, FAST = 8e6, 150e6
"""Bytes per second: below, the line is full and a cut would cost more pieces; above, it is not the
channel that holds up."""
SHOW_EVERY_S = 0.2

Frame = tuple[dict[str, Any], bytes]


@dataclass
class Sending:
    """What the server lacks of `entries`, whose files lie below `folder`. `ready`: what it has told
    before it is asked to take them. `into`: data or releases.

    `contents`: what is sent, each once; `total`: its bytes.
    """

    folder: Path
    entries: Sequence[FileEntry]
    into: str = "releases"
    ready: InitVar[Ready | None] = None

    def __post_init__(self, ready: Ready | None) -> None:
        self._sent, self._counting = 0, threading.Lock()
        self._choose(ready or Ready())

    def _choose(self, ready: Ready) -> None:
        once = {entry.sha256: entry for entry in self.entries}
        missing = once.keys() if ready.missing is None else set(ready.missing)
        self.contents = [entry for sha256, entry in once.items() if sha256 in missing]
        self.partial = {sha256: count for sha256, count in ready.partial.items() if count > 0}
        self._begun = dict(self.partial)
        self.total = sum(map(self._left, self.contents))

    def _left(self, entry: FileEntry) -> int:
        return max(0, entry.size - self.partial.get(entry.sha256, 0))

    def upload(self, session: Session, begin: Callable[[], None] = lambda: None) -> Upload:
        """Small files first, then large ones, over several channels where that helps. `begin` is
        called once it is known what is sent."""

        def frames(told: dict[str, Any]) -> Iterator[Frame]:
            if told:
                self._choose(decode(Ready, told))
            begin()
            yield from self._frames(session)

        return frames

    def _frames(self, session: Session) -> Iterator[Frame]:
        large = [entry for entry in self.contents if self._left(entry) >= LARGE]
        small = frozenset(entry.sha256 for entry in self.contents if self._left(entry) < LARGE)
        for header, blob in upload_frames(self.folder, self.entries, small, self.partial):
            yield header, blob
            self._count(session, sum(length for _, length, _ in header["pieces"]))
        with contextlib.ExitStack() as stack:
            lanes, is_measured = None, not session.can_widen
            for entry in large:
                begin = self.partial.get(entry.sha256, 0)
                if not is_measured or (lanes and begin % PIECE):
                    end = min(entry.size, begin // PIECE * PIECE + PROBE)
                    began = time.monotonic()
                    yield from self._over_one(session, entry, begin, end)
                    rate, begin = (end - begin) / (time.monotonic() - began), end
                    if not is_measured and NARROW < rate < FAST:
                        lanes = stack.enter_context(Lanes(session))
                    is_measured = True
                if lanes and lanes.links:
                    yield from self._over_several(session, entry, begin, lanes)
                else:
                    yield from self._over_one(session, entry, begin, entry.size)

    def _add(self, count: int) -> None:
        with self._counting:
            self._sent += count

    def _count(self, session: Session, count: int) -> None:
        self._add(count)
        session.display.transfer("sending", self._sent, self.total)

    def _over_one(
        self, session: Session, entry: FileEntry, begin: int, end: int
    ) -> Iterator[Frame]:
        for data in content_of(self.folder, entry, begin, end):
            begin += len(data)
            yield frame_of([[entry.sha256, len(data), begin == entry.size]], data, self._begun)
            self._count(session, len(data))

    def _over_several(
        self, session: Session, entry: FileEntry, begin: int, lanes: Lanes
    ) -> Iterator[Frame]:
        """Pieces go side by side to files of their own; what goes over the first channel are words
        that put them in order."""
        free: SimpleQueue[Link] = SimpleQueue()
        for link in lanes.links:
            free.put(link)
        under_way: deque[tuple[int, Future[None]]] = deque()
        for start in range(begin, entry.size, PIECE):
            under_way.append((start, lanes.pool.submit(self._carry, session, entry, start, free)))
            if len(under_way) > 2 * MOST:
                yield self._arrived(session, entry, *under_way.popleft())
        while under_way:
            yield self._arrived(session, entry, *under_way.popleft())

    def _carry(
        self, session: Session, entry: FileEntry, start: int, free: SimpleQueue[Link]
    ) -> None:
        end = min(start + PIECE, entry.size)
        link, sent = free.get(), 0

        def frames() -> Iterator[Frame]:
            nonlocal sent
            for data in content_of(self.folder, entry, start, end):
                yield frame_of([[entry.sha256, len(data), False]], data, {})
                sent += len(data)
                self._add(len(data))

        try:
            link.ask(
                ContentPiece,
                upload=lambda _: frames(),
                root=session.project.settings.root,
                into=self.into,
                sha256=entry.sha256,
                at=start,
                length=end - start,
            )
            self._add(end - start - sent)  # it was there, from a connection that was cut
        finally:
            free.put(link)

    def _arrived(
        self, session: Session, entry: FileEntry, start: int, carried: Future[None]
    ) -> Frame:
        while not wait_for([carried], SHOW_EVERY_S).done:
            self._count(session, 0)
        carried.result()
        end = min(start + PIECE, entry.size)
        header, _ = frame_of([[entry.sha256, end - start, end == entry.size]], b"", self._begun)
        return {**header, "stored": start}, b""


def waiting_note(session: Session, doing: str = " is deploying") -> Any:
    """Tells whom an operation waits for."""

    def note(event: dict[str, Any], blob: bytes) -> None:
        if isinstance(event.get("waiting"), dict):
            holder = event["waiting"]
            since = holder.get("since")
            age = (
                f", for {duration(time.time() - since)}" if isinstance(since, (int, float)) else ""
            )
            session.display.note(f"waiting: {show(holder.get('who') or 'somebody')}{doing}{age}")

    return note
