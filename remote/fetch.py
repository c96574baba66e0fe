"""Brings a run's directory here: manifest → missing ranges → .part files → sha256 → rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from remote.agent.trees import SYMLINK
from remote.errors import ProtocolError, RemoteError, TransferFailed
from remote.session import Session, who_am_i

SOURCE = "source/"
PART = ".part"
ENDED = ("finished", "failed", "stopped")
ROUNDS = 3
"""A file that changes while it is read is asked for so often."""
SPARE_BYTES = 16 << 20
RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


@dataclass(frozen=True)
class RemoteFile:
    """One line of the manifest. `sha256` is known beforehand for the release's files only."""

    path: str
    size: int
    mode: int
    sha256: str | None


@dataclass(frozen=True)
class LocalBytes:
    """What lies here of a file already: complete under its name, or the beginning in its part file."""

    size: int
    digest: hashlib._Hash
    part: bool


@dataclass(frozen=True)
class FetchPlan:
    """`wanted`: every file to ask about, with what we have of it; `same`: what needs no question."""

    wanted: tuple[tuple[RemoteFile, LocalBytes | None], ...]
    same: int

    @property
    def bytes_at_most(self) -> int:
        return sum(file.size - (have.size if have else 0) for file, have in self.wanted)


@dataclass
class Fetched:
    """What a fetch did; `path` is the run's directory here."""

    path: Path
    run: Mapping[str, Any]
    files: int = 0
    changed: int = 0
    received: int = 0
    gone: list[str] = field(default_factory=list)
    seconds: float = 0.0


def checked_manifest(rows: Iterable[Any], windows: bool = os.name == "nt") -> list[RemoteFile]:
    """The server's list of files; raises ProtocolError for what could leave the run's directory here or is no file list."""
    files, seen = [], set()
    for row in rows:
        try:
            path, size, mode, sha256 = row
        except (TypeError, ValueError):
            raise ProtocolError("the list of files has the wrong form") from None
        if not isinstance(path, str) or not safe_path(path, windows):
            raise ProtocolError(f"the server names a file that may not be written here: {path!r:.120}")
        if type(size) is not int or not 0 <= size < 1 << 50 or mode not in (0o644, 0o755, SYMLINK):
            raise ProtocolError(f"the server announces an impossible file: {path!r:.120}")
        if sha256 is not None and not (isinstance(sha256, str) and len(sha256) == 64):
            raise ProtocolError(f"the server announces an impossible hash: {path!r:.120}")
        if (path.casefold() in seen and windows) or path in seen:
            raise ProtocolError(f"the server names a file twice: {path!r:.120}")
        if mode == SYMLINK and (not path.startswith(SOURCE) or size > 4096):
            raise ProtocolError(f"the server announces a link outside the source: {path!r:.120}")
        seen.add(path.casefold() if windows else path)
        files.append(RemoteFile(path, size, mode, sha256))
    return files


def safe_path(path: str, windows: bool) -> bool:
    """A relative path of plain names that stays below where it is put, and that isn't one of our own part files."""
    if not path or len(path) > 2000 or path.startswith("/") or "\0" in path or path.endswith(PART):
        return False
    parts = path.split("/")
    if any(part in ("", ".", "..") or len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts):
        return False
    if windows:
        bad = set('<>:"|?*\\')
        return not any(
            bad & set(part) or part.endswith((" ", ".")) or part.split(".")[0].lower() in RESERVED or min(part) < " " for part in parts
        )
    return True


def plan_fetch(files: Iterable[RemoteFile], local: Callable[[RemoteFile], LocalBytes | None]) -> FetchPlan:
    """Ask about every file of the run, with what we have; not about source files whose content is right already."""
    wanted, same = [], 0
    for file in files:
        have = local(file)
        complete = have is not None and not have.part and have.size == file.size
        if complete and have is not None and file.sha256 is not None and have.digest.hexdigest() == file.sha256:
            same += 1
        else:
            wanted.append((file, have if have and have.size <= file.size else None))
    return FetchPlan(tuple(wanted), same)


def read_local(directory: Path, file: RemoteFile) -> LocalBytes | None:
    """Hash what is here of a file. A part file counts if it holds more than the complete one."""
    place = directory / PurePosixPath(file.path)
    part = place.with_name(place.name + PART)
    if file.mode == SYMLINK and place.is_symlink():
        target = os.fsencode(os.readlink(place).replace(os.sep, "/"))
        return LocalBytes(len(target), hashlib.sha256(target), False)
    sizes = [path.stat().st_size if path.is_file() and not path.is_symlink() else -1 for path in (place, part)]
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


def fetch_run(session: Session, run: str, dest: Path) -> Fetched:
    """Fetch one run completely. After a lost connection the same call goes on where it stopped.

    Raises TransferFailed where this disk has no room or a file can't be had unchanged.
    """
    started = time.monotonic()
    results = [part.strip() for part in session.project.settings.results.split(",") if part.strip()]
    answer = session.call("fetch_manifest", run=run, results=results)
    described = answer.get("run")
    name = described.get("run") if isinstance(described, dict) else None
    if not isinstance(described, dict) or not isinstance(name, str) or not safe_path(name, True) or "/" in name or name.startswith("."):
        raise ProtocolError("the server names no run", host=session.host)
    files = checked_manifest(answer.get("files") or [])
    directory = dest / str(described["run"])
    refuse_links(dest, directory)
    fetched = Fetched(directory, described, files=len(files))
    try:
        _fetch_files(session, directory, files, fetched)
    except OSError as error:
        raise TransferFailed(
            f"{directory} can't be written: {error.strerror or error}",
            host=session.host,
            remedy="free some space or give another place with --dest, then run the same command again",
        ) from None
    tell_fetched(session, fetched)
    fetched.seconds = time.monotonic() - started
    return fetched


def tell_fetched(session: Session, fetched: Fetched) -> None:
    """Let the server know that all of an ended run is here, so that `clean` may remove it there."""
    detail = fetched.run.get("detail")
    ended = detail.get("ended") if isinstance(detail, Mapping) else None
    if fetched.run.get("state") not in ENDED or fetched.gone or not isinstance(detail, Mapping) or detail.get("fetched"):
        return
    try:
        session.call("fetch_done", run=str(fetched.run["run"]), ended=ended, files=fetched.files, who=who_am_i())
    except RemoteError as error:
        session.display.note(f"all is here, but the server could not be told so ({error.message}); `clean` will keep the run there")


def _fetch_files(session: Session, directory: Path, files: list[RemoteFile], fetched: Fetched) -> None:
    pending = files
    for _ in range(ROUNDS):
        plan = plan_fetch(pending, lambda file: read_local(directory, file))
        _require_space(session, directory, plan)
        receiver = Receiver(directory, plan, fetched, lambda done, total: _show(session, done, total))
        if plan.wanted:
            ranges = [[f.path, h.size if h else 0, h.digest.hexdigest() if h else None, f.size] for f, h in plan.wanted]
            try:
                session.call("fetch_read", receiver.event, run=str(fetched.run["run"]), ranges=ranges)
            finally:
                receiver.close()
        receiver.make_links()
        if not receiver.wrong:
            return
        pending = receiver.wrong
    names = ", ".join(file.path for file in pending[:3])
    raise TransferFailed(f"{names} changed each time while being read", host=session.host, remedy="run the same command again")


def _show(session: Session, done: int, total: int) -> None:
    if total:
        session.display.progress(f"fetching {done / 2**20:.1f} of {total / 2**20:.1f} MiB ({100 * done // total}%)")


def _require_space(session: Session, directory: Path, plan: FetchPlan) -> None:
    # A file that grew is written anew beside its old self, so it needs all its bytes.
    need = sum(file.size if have and not have.part else file.size - (have.size if have else 0) for file, have in plan.wanted
               if not (have and not have.part and have.size == file.size))  # fmt: skip
    existing = directory
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if need + SPARE_BYTES > free:
        raise TransferFailed(
            f"{need / 2**20:.0f} MiB to fetch, {free / 2**20:.0f} MiB free at {existing}",
            host=session.host,
            remedy="free some space here, or give another place with --dest",
        )


def refuse_links(dest: Path, directory: Path) -> None:
    """The run's directory must be a real directory: a link there could lead what we write to another place."""
    if directory.is_symlink() or (directory.exists() and directory.resolve().parent != dest.resolve()):
        raise TransferFailed(f"{directory} is a link", remedy="remove it or give another place with --dest")


class Receiver:
    """Turns the agent's events into files. Never writes more than was announced, nor outside `directory`."""

    def __init__(self, directory: Path, plan: FetchPlan, fetched: Fetched, show: Callable[[int, int], None]) -> None:
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
            self._end(event["done"])

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
        self.show(self.done, self.total)

    def _open_part(self, file: RemoteFile, have: LocalBytes | None) -> IO[bytes]:
        place = self._place(file)
        part = place.with_name(place.name + PART)
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
        """Where the file goes; its directory is made, and must not lead elsewhere through a link."""
        place = self.directory / PurePosixPath(file.path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.parent.resolve().is_relative_to(self.directory.resolve()):
            raise TransferFailed(f"{place.parent} leads out of {self.directory} through a link", remedy="remove that link")
        return place

    def _end(self, sha256: object) -> None:
        assert self.current is not None
        (file, have), self.current = self.current, None
        self.close()
        if sha256 is None:
            self.fetched.gone.append(file.path)
            return
        right = self.position == file.size and self.digest.hexdigest() == sha256 and file.sha256 in (None, sha256)
        place = self._place(file)
        part = place.with_name(place.name + PART)
        if not right:
            self.wrong.append(file)
            part.unlink(missing_ok=True)
        elif file.mode == SYMLINK:
            self.links.append((file, bytes(self.content)))
        elif have and not have.part and have.size == file.size and have.digest.hexdigest() == sha256:
            _set_mode(place, file.mode)
        else:
            if not part.exists():
                part.touch()
            _set_mode(part, file.mode)
            if place.is_dir() and not place.is_symlink():
                raise TransferFailed(f"{place} is a directory, a file of that name was fetched", remedy="remove it")
            os.replace(part, place)
            self.fetched.changed += 1

    def make_links(self) -> None:
        """Last of all, and only those that stay inside the source."""
        for file, content in self.links:
            place = self._place(file)
            target = content.decode("utf-8", "surrogateescape")
            reached = os.path.normpath(os.path.join(os.path.dirname(file.path), target))
            if os.path.isabs(target) or not (reached + "/").startswith(SOURCE) or "\0" in target:
                raise ProtocolError(f"the server sends a link that leads out of the source: {file.path!r:.120}")
            if place.is_symlink() or place.exists():
                place.unlink()
            try:
                os.symlink(target, place)
            except OSError:  # Windows without the right to make links: what git does there
                place.write_bytes(content)
            self.fetched.changed += 1
        self.links = []


def _set_mode(path: Path, mode: int) -> None:
    if os.name != "nt" and path.stat().st_mode & 0o777 != mode & 0o777:
        path.chmod(mode)


