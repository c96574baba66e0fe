"""Brings a run's directory here: manifest → missing ranges → parts → sha256 → rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from remote.agent.shared.trees import SYMLINK
from remote.errors import ProtocolError, RemoteError, TransferFailed, UsageError
from remote.link.session import Session, who_am_i
from remote.project.results import read_mapping
from remote.screen.display import size

SOURCE = "source/"
PARTS = ".fetch"
"""In a run's directory here: what has not arrived whole; its names are hashes of the paths."""
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
class Left:
    """Something of the run that does not come. `lost`: its bytes would go with the run."""

    path: str
    size: int
    why: str
    lost: bool


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
    # Not here although it was listed: path → why; None: it vanished meanwhile.
    gone: dict[str, str | None] = field(default_factory=dict)
    # What stays on the server by remote.results, or since it can't be had: the size counts what would be lost with the run.
    left: list[Left] = field(default_factory=list)
    seconds: float = 0.0
    # An earlier fetch has brought all of it, as it is there now.
    known_complete: bool = False


def checked_manifest(rows: Iterable[Any], system: str = sys.platform) -> tuple[list[RemoteFile], list[Left]]:
    """The server's list of files, and those that this system can't hold.

    Raises ProtocolError for what could leave the run's directory here or is no file list.
    """
    files, left, paths, taken = [], [], set(), set()
    for row in rows:
        try:
            path, size, mode, sha256 = row
        except (TypeError, ValueError):
            raise ProtocolError("the list of files has the wrong form") from None
        if not isinstance(path, str) or not safe_path(path):
            raise ProtocolError(f"the server names a file that may not be written here: {path!r:.120}")
        if type(size) is not int or not 0 <= size < 1 << 50 or mode not in (0o644, 0o755, SYMLINK):
            raise ProtocolError(f"the server announces an impossible file: {path!r:.120}")
        if sha256 is not None and not (isinstance(sha256, str) and len(sha256) == 64):
            raise ProtocolError(f"the server announces an impossible hash: {path!r:.120}")
        if mode == SYMLINK and size > 4096:
            raise ProtocolError(f"the server announces a link without end: {path!r:.120}")
        if path in paths:
            raise ProtocolError(f"the server names a file twice: {path!r:.120}")
        paths.add(path)
        same = path if system == "linux" else unicodedata.normalize("NFC", path).casefold()
        if not holds_name(path, system) or same in taken:
            left.append(Left(path, size, "this computer can't hold that name", True))
            continue
        taken.add(same)
        files.append(RemoteFile(path, size, mode, sha256))
    return files, left


def safe_path(path: str) -> bool:
    """A relative path of plain names that stays below where it is put, and away from our own parts."""
    if not path or len(path) > 4000 or path.startswith(("/", PARTS + "/")) or "\0" in path or path == PARTS:
        return False
    parts = path.split("/")
    return not any(part in ("", ".", "..") or len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts)


def holds_name(path: str, system: str = sys.platform) -> bool:
    """Whether this system's files can have that name, as it is."""
    if system == "linux":
        return True
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    bad = set('<>:"|?*\\')
    return system != "win32" or not any(
        bad & set(part) or part.endswith((" ", ".")) or part.split(".")[0].lower() in RESERVED or min(part) < " "
        for part in path.split("/")
    )


def plan_fetch(files: Iterable[RemoteFile], local: Callable[[RemoteFile], LocalBytes | None]) -> FetchPlan:
    """Ask about every file of the run, with what we have; not about source files whose content is right already."""
    wanted, same = [], 0
    for file in files:
        have = local(file)
        complete = have is not None and not have.part and have.size == file.size
        if complete and have is not None and file.sha256 is not None and have.digest.hexdigest() == file.sha256:
            same += 1
        else:
            # A link's target is no prefix of another.
            goes_on = have is not None and (have.size == file.size if file.mode == SYMLINK else have.size <= file.size)
            wanted.append((file, have if goes_on else None))
    return FetchPlan(tuple(wanted), same)


def read_local(directory: Path, file: RemoteFile) -> LocalBytes | None:
    """Hash what is here of a file. A part file counts if it holds more than the complete one."""
    place = directory / PurePosixPath(file.path)
    part = part_of(directory, file)
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


def part_of(directory: Path, file: RemoteFile) -> Path:
    """Where a file's bytes are kept until it is whole."""
    return directory / PARTS / hashlib.sha256(file.path.encode("utf-8", "surrogateescape")).hexdigest()[:40]


def fetch_run(session: Session, run: str, dest: Path, ask: bool = True) -> Fetched:
    """Fetch one run completely. After a lost connection the same call goes on where it stopped.

    `ask`: first, where much is to come and somebody sits at the terminal. Raises UsageError where the answer is no, and
    TransferFailed where this disk has no room or a file can't be had unchanged.
    """
    started = time.monotonic()
    results = [part.strip() for part in session.project.settings.results.split(",") if part.strip()]
    answer = session.call("fetch_manifest", run=run, results=results)
    described = answer.get("run")
    name = described.get("run") if isinstance(described, dict) else None
    plain = isinstance(name, str) and safe_path(name) and holds_name(name, "win32") and "/" not in name and not name.startswith(".")
    if not isinstance(described, dict) or not plain:
        raise ProtocolError("the server names no run", host=session.host)
    files, unheld = checked_manifest(answer.get("files") or [])
    directory = dest / str(described["run"])
    refuse_links(dest, directory)
    fetched = Fetched(directory, described, files=len(files), left=unheld + parse_left(answer.get("left") or []))
    try:
        remove_stale_links(directory, files)
        link_known_source(dest, directory, files, described.get("release"))
        _fetch_files(session, directory, files, fetched, ask)
        if (directory / PARTS).is_dir() and not any((directory / PARTS).iterdir()):
            (directory / PARTS).rmdir()
    except OSError as error:
        raise TransferFailed(
            f"{directory} can't be written: {error.strerror or error}",
            host=session.host,
            remedy="free some space or give another place with --dest, then run the same command again",
        ) from None
    fetched.known_complete = answer.get("marked") == "complete"
    if not fetched.known_complete and answer.get("marked") != ("narrowed" if any(row.lost for row in fetched.left) else "complete"):
        tell_fetched(session, fetched, answer.get("seen"), bool(results))
    fetched.seconds = time.monotonic() - started
    return fetched


def parse_left(rows: Iterable[Any]) -> list[Left]:
    """What the server says stays there; raises ProtocolError for anything else."""
    found = []
    for row in rows:
        if len(row) != 4 or not isinstance(row[0], str) or type(row[1]) is not int or not isinstance(row[2], str):
            raise ProtocolError("the list of what stays there has the wrong form")
        found.append(Left(row[0], row[1], row[2], row[3] is not False))
    return found


def tell_fetched(session: Session, fetched: Fetched, seen: object, narrowed: bool) -> None:
    """Let the server know that all of an ended run is here, so that `clean` may remove it there.

    `narrowed`: something stays there by remote.results, as the user set it: `clean` keeps such a run.
    """
    detail = fetched.run.get("detail")
    lost = [row for row in fetched.left if row.lost]
    if fetched.run.get("state") not in ENDED or fetched.gone or (lost and not narrowed) or not isinstance(detail, Mapping):
        return
    mark: dict[str, Any] = {"ended": detail.get("ended"), "files": fetched.files, "seen": str(seen), "narrowed": bool(lost)}
    try:
        session.call("fetch_done", run=str(fetched.run["run"]), who=who_am_i(), **mark)
    except RemoteError as error:
        session.display.note(f"all is here, but the server could not be told so ({error.message}); `clean` will keep the run there")


def remove_stale_links(directory: Path, files: Iterable[RemoteFile]) -> None:
    """A link that was fetched before may be a folder by now. One that leads elsewhere is the user's, and stops the fetch."""
    folders = {parent for file in files for parent in PurePosixPath(file.path).parents}
    for folder in sorted(folders, key=lambda path: len(path.parts))[1:]:
        place = directory / folder
        if place.is_symlink() and place.resolve().is_relative_to(directory.resolve()):
            place.unlink()


def link_known_source(dest: Path, directory: Path, files: Iterable[RemoteFile], release: object) -> None:
    """The same code that another run here has is not sent again: one file under two names. Each is verified like all others."""
    source = [file for file in files if file.path.startswith(SOURCE) and file.mode != SYMLINK]
    if not isinstance(release, str) or (source and (directory / source[-1].path).exists()):
        return
    for other in dest.glob("2*"):
        if other != directory and (other / SOURCE).is_dir() and read_mapping(other, "run.json").get("release") == release:
            break
    else:
        return
    for file in source:
        known, place = other / file.path, directory / file.path
        if known.is_file() and not known.is_symlink() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(known, place)
            except OSError:  # a file system without such links
                shutil.copy2(known, place)


def _fetch_files(session: Session, directory: Path, files: list[RemoteFile], fetched: Fetched, ask: bool) -> None:
    pending = files
    for count in range(ROUNDS):
        plan = plan_fetch(pending, lambda file: read_local(directory, file))
        _require_space(session, directory, plan)
        if ask and not count:
            _agree(session, plan)
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


def _agree(session: Session, plan: FetchPlan) -> None:
    """Much is asked about where somebody can answer; where nobody can, it comes: nothing is ever left out for its size."""
    if plan.bytes_at_most <= session.project.settings.ask_above_mib * 2**20:
        return
    largest = sorted((file for file, _ in plan.wanted), key=lambda file: -file.size)[:3]
    names = ", ".join(f"{file.path} ({size(file.size)})" for file in largest)
    if session.display.confirm(f"{size(plan.bytes_at_most)} are to be fetched, among them {names}. Fetch them?") is False:
        raise UsageError(
            "nothing was fetched", step="fetch", host=session.host, remedy="remote.results narrows what comes; --yes fetches all unasked"
        )


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
        """Where the file goes; its directory is made, and must not lead elsewhere through a link."""
        place = self.directory / PurePosixPath(file.path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.parent.resolve().is_relative_to(self.directory.resolve()):
            raise TransferFailed(f"{place.parent} leads out of {self.directory} through a link", remedy="remove that link")
        return place

    def _end(self, sha256: object, why: object = None) -> None:
        assert self.current is not None
        (file, have), self.current = self.current, None
        self.close()
        if sha256 is None:
            self.fetched.gone[file.path] = why if isinstance(why, str) else None
            return
        right = self.position == file.size and self.digest.hexdigest() == sha256 and file.sha256 in (None, sha256)
        place = self._place(file)
        part = part_of(self.directory, file)
        if not right:
            self.wrong.append(file)
            part.unlink(missing_ok=True)
        elif have and not have.part and have.size == file.size and have.digest.hexdigest() == sha256:
            if file.mode != SYMLINK:
                _set_mode(place, file.mode)
        elif file.mode == SYMLINK:
            self.links.append((file, bytes(self.content)))
        else:
            if not part.exists():
                part.parent.mkdir(exist_ok=True)
                part.touch()
            _set_mode(part, file.mode)
            if place.is_dir() and not place.is_symlink():
                raise TransferFailed(f"{place} is a directory, a file of that name was fetched", remedy="remove it")
            os.replace(part, place)
            self.fetched.changed += 1

    def make_links(self) -> None:
        """Last of all, and only those that stay inside the run; of its source, inside that."""
        for file, content in self.links:
            place = self._place(file)
            target = content.decode("utf-8", "surrogateescape")
            reached = os.path.normpath(os.path.join(os.path.dirname(file.path), target))
            leaves = not (reached + "/").startswith(SOURCE) if file.path.startswith(SOURCE) else reached.split("/")[0] == ".."
            if os.path.isabs(target) or leaves or "\0" in target:
                raise ProtocolError(f"the server sends a link that leads out of the run: {file.path!r:.120}")
            if place.is_dir() and not place.is_symlink():
                raise TransferFailed(f"{place} is a directory, a link of that name was fetched", remedy="remove it")
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


