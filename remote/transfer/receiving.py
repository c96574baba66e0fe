"""From the agent's events to files: what is here already, the parts, the hash, the name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from remote.agent.shared.trees import SYMLINK
from remote.errors import ProtocolError, TransferFailed
from remote.project.results import read_mapping
from remote.records import Run
from remote.transfer.manifest import PARTS, SOURCE, Left, RemoteFile

RECORDS = ("run.json", "state.json", "progress.json", "summary.json")
FINEST_NS = 2000
"""As exactly as file systems keep a time that is set."""


@dataclass(frozen=True)
class LocalBytes:
    """What lies here of a file already: complete under its name, or the beginning in its part
    file."""

    size: int
    digest: hashlib._Hash
    part: bool

    def is_whole(self, file: RemoteFile) -> bool:
        return not self.part and self.size == file.size


@dataclass(frozen=True)
class FetchPlan:
    """`wanted`: every file to ask about, with what we have of it; `same`: what needs no
    question."""

    wanted: tuple[tuple[RemoteFile, LocalBytes | None], ...]
    same: int

    @property
    def bytes_at_most(self) -> int:
        return sum(file.size - (have.size if have else 0) for file, have in self.wanted)


@dataclass
class Fetched:
    """What a fetch did; `path` is the run's directory here."""

    path: Path
    run: Run
    files: int = 0
    changed: int = 0
    received: int = 0
    # Not here although it was listed: path → why; None: it vanished meanwhile.
    gone: dict[str, str | None] = field(default_factory=dict)
    # What stays on the server by remote.results, or since it can't be had: the size counts what
    # would be lost with the run.
    left: list[Left] = field(default_factory=list)
    # Changed here and replaced: path → the name that it has now.
    kept: dict[str, str] = field(default_factory=dict)
    # An earlier fetch has brought all of it, as it is there now.
    known_complete: bool = False


def plan_fetch(
    files: Iterable[RemoteFile], local: Callable[[RemoteFile], LocalBytes | None]
) -> FetchPlan:
    """Ask about every file of the run, with what we have; not about source files whose content is
    right already."""
    wanted, same = [], 0
    for file in files:
        have = local(file)
        if have and have.is_whole(file) and have.digest.hexdigest() == file.sha256:
            same += 1
        else:
            # A link's target is no prefix of another.
            goes_on = have is not None and (
                have.size == file.size if file.mode == SYMLINK else have.size <= file.size
            )
            wanted.append((file, have if goes_on else None))
    return FetchPlan(tuple(wanted), same)


def read_local(directory: Path, file: RemoteFile) -> LocalBytes | None:
    """Hash what is here of a file. A part file counts if it holds more than the complete one."""
    place = directory / PurePosixPath(file.path)
    part = part_of(directory, file)
    if file.mode == SYMLINK and place.is_symlink():
        target = os.fsencode(os.readlink(place).replace(os.sep, "/"))
        return LocalBytes(len(target), hashlib.sha256(target), False)
    sizes = [
        path.stat().st_size if path.is_file() and not path.is_symlink() else -1
        for path in (place, part)
    ]
    if sizes[0] > file.size:
        sizes[0] = -1
    chosen = part if sizes[1] > sizes[0] and sizes[1] <= file.size else place
    if max(sizes) < 0 or not chosen.is_file():
        return None
    digest, size = hashlib.sha256(), 0
    with open(chosen, "rb") as reader:
        while data := reader.read(1 << 20):
            digest.update(data)
            size += len(data)
    return LocalBytes(size, digest, chosen == part)


def part_of(directory: Path, file: RemoteFile) -> Path:
    """Where a file's bytes are kept until it is whole."""
    name = hashlib.sha256(file.path.encode("utf-8", "surrogateescape")).hexdigest()[:40]
    return directory / PARTS / name


class Receiver:
    """Turns the agent's events into files. Never writes more than was announced, nor outside
    `directory`."""

    def __init__(
        self, directory: Path, plan: FetchPlan, fetched: Fetched, show: Callable[[int, int], None]
    ) -> None:
        self.directory = directory
        self.queue = list(plan.wanted)
        self.fetched = fetched
        self.show = show
        self.total = plan.bytes_at_most
        self.done = 0
        self.wrong: list[RemoteFile] = []
        self.links: list[tuple[RemoteFile, bytes]] = []
        self.current: tuple[RemoteFile, LocalBytes | None] | None = None
        self.digest: hashlib._Hash = hashlib.sha256()
        self.position = 0
        # What is here is how what is there begins.
        self.grew = False
        self.output: IO[bytes] | None = None
        self.content = bytearray()

    def event(self, event: dict[str, Any], blob: bytes) -> None:
        if "file" in event:
            self._begin(event)
        if self.current is None:
            raise ProtocolError("the server sends bytes of no file")
        if blob:
            self._write(blob)
        if "done" in event:
            self._end(event["done"], event.get("why"))

    def close(self) -> None:
        if self.output is not None:
            self.output.close()
            self.output = None

    def _begin(self, event: Mapping[str, Any]) -> None:
        if self.current is not None or not self.queue or self.queue[0][0].path != event["file"]:
            raise ProtocolError("the server sends a file that was not asked for")
        self.current = self.queue.pop(0)
        _, have = self.current
        offset = event.get("offset")
        if offset not in (0, have.size if have else 0) or type(offset) is not int:
            raise ProtocolError("the server starts a file at a wrong place")
        self.position = offset
        self.grew = bool(have and offset and not have.part)
        self.digest = have.digest.copy() if have and offset else hashlib.sha256()
        self.content = bytearray()

    def _write(self, blob: bytes) -> None:
        assert self.current is not None
        file, have = self.current
        if self.position + len(blob) > file.size:
            raise ProtocolError("the server sends more than it announced")
        if file.mode == SYMLINK:
            self.content += blob
        else:
            if self.output is None:
                self.output = self._open_part(file, have)
            self.output.write(blob)
        self.digest.update(blob)
        self.position += len(blob)
        self.fetched.received += len(blob)
        self.done += len(blob)
        if self.total:
            self.show(self.done, self.total)

    def _open_part(self, file: RemoteFile, have: LocalBytes | None) -> IO[bytes]:
        place = self._place(file)
        part = part_of(self.directory, file)
        part.parent.mkdir(exist_ok=True)
        if part.is_symlink():
            part.unlink()
        if self.position and have and not have.part:
            shutil.copyfile(place, part)
        if not self.position:
            return open(part, "wb")
        output = open(part, "r+b")
        output.seek(self.position)
        output.truncate()
        return output

    def _place(self, file: RemoteFile) -> Path:
        """Where the file goes; its directory is made, and must not lead elsewhere through a
        link."""
        place = self.directory / PurePosixPath(file.path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.parent.resolve().is_relative_to(self.directory.resolve()):
            raise TransferFailed(
                f"{place.parent} leads out of {self.directory} through a link",
                remedy="remove that link",
            )
        return place

    def _end(self, sha256: object, why: object = None) -> None:
        assert self.current is not None
        (file, have), self.current = self.current, None
        self.close()
        if sha256 is None:
            self.fetched.gone[file.path] = why if isinstance(why, str) else None
            return
        is_right = (
            self.position == file.size
            and self.digest.hexdigest() == sha256
            and file.sha256 in (None, sha256)
        )
        is_here = have and have.is_whole(file) and have.digest.hexdigest() == sha256
        place, part = self._place(file), part_of(self.directory, file)
        if file.mode != SYMLINK and not is_here:
            is_right = is_right and _holds(part, file.size)
        if not is_right:
            self.wrong.append(file)
            part.unlink(missing_ok=True)
        elif is_here:
            _set_mode(place, file.mode)
            _set_time(place, file.changed)
        elif file.mode == SYMLINK:
            self.links.append((file, bytes(self.content)))
        elif file.path in RECORDS and _holds_record(place) and not _holds_record(part):
            part.unlink()
            why = "it can't be read on the server; the one that is here stays"
            self.fetched.left.append(Left(file.path, 0, why, True))
        else:
            _set_mode(part, file.mode)
            _set_time(part, file.changed)
            refuse_directory(place)
            if not self.grew and file.changed is not None and _was_written_here(place):
                self.fetched.kept[file.path] = _keep_beside(place)
            os.replace(part, place)
            self.fetched.changed += 1

    def make_links(self) -> None:
        """Last of all, and only those that stay inside the run; of its source, inside that."""
        for file, content in self.links:
            place = self._place(file)
            target = content.decode("utf-8", "surrogateescape")
            reached = os.path.normpath(os.path.join(os.path.dirname(file.path), target))
            leaves = reached.split("/")[0] == ".."
            if file.path.startswith(SOURCE):
                leaves = not (reached + "/").startswith(SOURCE)
            if os.path.isabs(target) or leaves or "\0" in target:
                raise ProtocolError(
                    f"the server sends a link that leads out of the run: {file.path!r:.120}"
                )
            refuse_directory(place)
            if place.is_symlink() or place.exists():
                place.unlink()
            try:
                os.symlink(target, place)
            except OSError:  # Windows without the right to make links: what git does there
                place.write_bytes(content)
            _set_time(place, file.changed)
            self.fetched.changed += 1
        self.links = []


def _holds(part: Path, length: int) -> bool:
    """Whether what came lies there, and no more: the hash is of what came. Nothing comes of an
    empty file, where a beginning of what it was before may lie."""
    if not length:
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(b"")
    return part.is_file() and part.stat().st_size == length


def _holds_record(place: Path) -> bool:
    return bool(read_mapping(place.parent, place.name))


def _was_written_here(place: Path) -> bool:
    """A fetch sets the server's time, which is told in milliseconds; a write has any other."""
    try:
        status = place.lstat()
    except OSError:
        return False
    apart_ns = (status.st_mtime_ns + 500_000) % 1_000_000 - 500_000
    return stat.S_ISREG(status.st_mode) and abs(apart_ns) > FINEST_NS


def _keep_beside(place: Path) -> str:
    kept = place.with_name(f"{place.name}.mine")
    while kept.exists():
        kept = kept.with_name(f"{kept.name}.mine")
    os.replace(place, kept)
    return kept.name


def refuse_directory(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        text = f"{place} is a directory here, and none in the run"
        raise TransferFailed(text, remedy="remove it")


def _set_mode(path: Path, mode: int) -> None:
    if os.name != "nt" and mode != SYMLINK and path.stat().st_mode & 0o777 != mode & 0o777:
        path.chmod(mode)


def _set_time(path: Path, changed: float | None) -> None:
    """As it is there: on another server the run goes on from the checkpoint that was written
    last."""
    if changed is not None and abs(path.lstat().st_mtime - changed) > 1e-4:
        with contextlib.suppress(OSError, NotImplementedError):
            os.utime(path, (changed, changed), follow_symlinks=not path.is_symlink())
