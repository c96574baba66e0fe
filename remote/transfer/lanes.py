"""Large files over several channels of one login: OpenSSH's channels hold 2 MiB on their way, which a long line can't fill."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from remote.errors import AuthenticationFailed, ConnectionLost, ProtocolError, RemoteError, ServerUnfit, Unreachable
from remote.link.link import Link
from remote.link.session import Session
from remote.transfer.manifest import RemoteFile
from remote.transfer.receiving import LocalBytes

LANES = 6
"""Beside the first channel and the one that hashes: 8 of the 10 sessions that sshd allows by default."""
SEGMENT = 8 << 20
AHEAD = 10
"""Segments that may wait here in memory, or be on their way: 80 MiB."""
LARGE = 32 << 20
"""Below that one channel is done before others have begun."""

Wanted = tuple[RemoteFile, "LocalBytes | None"]


def is_large(file: RemoteFile, have: LocalBytes | None) -> bool:
    return file.size - (have.size if have else 0) >= LARGE and file.mode != 0o120000


@dataclass(eq=False)
class Segment:
    """A part of one file on its way here."""

    path: str
    start: int
    end: int
    data: bytearray | None = None
    gone: bool = False


class Lanes:
    """Agents over one login, side by side. What they bring is handed on in order, so that a cut leaves beginnings of files."""

    def __init__(self, session: Session, run: str) -> None:
        self._session, self._run = session, run
        self._root = session.project.settings.root
        self._changed = threading.Condition()
        self._segments: list[Segment] = []
        self._begun = self._needed = 0
        self._alive = 0
        self._left: list[Segment] = []
        self._ended = False
        self._error: RemoteError | None = None
        self._links: list[Link] = []

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            links, self._links = self._links, []
        for link in links:
            link.__exit__(None, None, None)

    def fetch(self, wanted: Sequence[Wanted], event: Callable[[dict[str, Any], bytes], None]) -> None:
        """Bring the files, as events of `fetch_read` would: file and offset, bytes, the hash of the whole at the end."""
        hashes = [HashLater(self._session, self._run, file) for file, _ in wanted]
        offsets = [self._offset(file, have) for file, have in wanted]
        for (file, _), offset in zip(wanted, offsets, strict=True):
            starts = range(offset, file.size, SEGMENT)
            self._segments += [Segment(file.path, at, min(at + SEGMENT, file.size)) for at in starts]
        self._open()
        threading.Thread(target=self._hash, args=(hashes,), daemon=True).start()
        for number, ((file, _), offset) in enumerate(zip(wanted, offsets, strict=True)):
            event({"file": file.path, "offset": offset}, b"")
            gone = False
            while self._needed < len(self._segments) and self._segments[self._needed].path == file.path:
                segment = self._wait()
                gone = gone or segment.gone
                if not gone:
                    event({}, bytes(segment.data or b""))
                self._step(segment)
            event({"done": None if gone else hashes[number].wait()}, b"")

    def _offset(self, file: RemoteFile, have: LocalBytes | None) -> int:
        """What is here already counts where the same bytes begin the file there."""
        if have is None or not have.size:
            return 0
        there = self._session.call("fetch_hash", run=self._run, path=file.path, end=have.size)["sha256"]
        return have.size if there == have.digest.hexdigest() else 0

    def _open(self) -> None:
        for _ in range(min(LANES, len(self._segments))):
            self._alive += 1
            threading.Thread(target=self._carry, daemon=True).start()

    def _carry(self) -> None:
        """One lane: the next segment that nobody has begun, until none is left. A lane that fails leaves its segment to others."""
        segment: Segment | None = None
        try:
            with self._new_link() as link:
                while (segment := self._next()) is not None:
                    self._bring(partial(link.call, root=self._root), segment)
        except (ConnectionLost, ServerUnfit, Unreachable, AuthenticationFailed):
            with self._changed:
                if segment is not None:
                    self._left.append(segment)
        except RemoteError as error:
            with self._changed:
                self._error = error
        finally:
            with self._changed:
                self._alive -= 1
                self._changed.notify_all()

    def _new_link(self) -> Link:
        link = self._session.lane()
        with self._changed:
            if self._ended:
                raise ConnectionLost("the connection is closed", host=self._session.host)
            self._links.append(link)
        return link

    def _next(self) -> Segment | None:
        with self._changed:
            while self._begun >= self._needed + AHEAD and not self._left and not self._ended and self._begun < len(self._segments):
                self._changed.wait()
            if self._left and not self._ended:
                return self._left.pop(0)
            if self._ended or self._begun >= len(self._segments):
                return None
            self._begun += 1
            return self._segments[self._begun - 1]

    def _bring(self, call: Callable[..., dict[str, Any]], segment: Segment) -> None:
        data, size = bytearray(), segment.end - segment.start

        def more(fields: dict[str, Any], blob: bytes) -> None:
            if len(data) + len(blob) > size:
                raise ProtocolError("the server sends more than it announced", host=self._session.host)
            data.extend(blob)

        sha256 = call("fetch_segment", more, run=self._run, path=segment.path, start=segment.start, end=segment.end)["sha256"]
        with self._changed:
            segment.gone = sha256 is None or len(data) != size or hashlib.sha256(data).hexdigest() != sha256
            segment.data = data
            self._changed.notify_all()

    def _wait(self) -> Segment:
        segment = self._segments[self._needed]
        with self._changed:
            while segment.data is None and self._alive and self._error is None and segment not in self._left:
                self._changed.wait(1.0)
            if self._error is not None:
                raise self._error
            if segment in self._left:
                self._left.remove(segment)
        if segment.data is None:
            self._bring(self._session.call, segment)  # no lane could: the first channel does
        return segment

    def _step(self, segment: Segment) -> None:
        with self._changed:
            segment.data = None
            self._needed += 1
            self._begun = max(self._begun, self._needed)
            self._changed.notify_all()

    def _hash(self, hashes: Sequence[HashLater]) -> None:
        """The server reads each file as a whole, on a lane of its own: parts that fit may still be parts of two states."""
        try:
            with self._new_link() as link:
                for later in hashes:
                    later.ask(link, self._root)
        except RemoteError as error:
            for later in hashes:
                later.fail(error)


class HashLater:
    """The hash of a whole file, while its parts are on their way."""

    def __init__(self, session: Session, run: str, file: RemoteFile) -> None:
        self._session, self._run, self._file = session, run, file
        self._known = threading.Event()
        self._sha256: str | None = None
        self._failed = False

    def ask(self, link: Link, root: str) -> None:
        answer = link.call("fetch_hash", root=root, run=self._run, path=self._file.path, end=self._file.size)
        self._sha256 = answer["sha256"]
        self._known.set()

    def fail(self, error: RemoteError) -> None:
        self._failed = True
        self._known.set()

    def wait(self) -> str | None:
        """Asked for again on the first channel where the lane brought none."""
        while not self._known.wait(1.0):
            pass
        if self._failed and self._sha256 is None:
            answer = self._session.call("fetch_hash", run=self._run, path=self._file.path, end=self._file.size)
            self._sha256 = answer["sha256"]
        return self._sha256
