"""The project's code as it stands: its files with their hashes, and their contents on their way."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from remote.agent.shared import protocol
from remote.agent.shared.trees import SYMLINK, tree_hash
from remote.errors import TransferFailed, UsageError
from remote.project.settings import listed
from remote.records import FileEntry, Release
from remote.release.code_files import (
    FETCHED_RUNS,
    HELP,
    LEADS_OUT,
    LFS_POINTER,
    LONGER_THAN_KEYS,
    OVER_LIMIT,
    find_included,
    folders_made,
    is_fetched,
    is_included,
    is_private_key,
    list_files,
    reason_to_leave,
    why_nothing,
)
from remote.release.git import describe_origin

SMALL_MANIFEST = 600
"""A manifest of so many files goes with the first call; a longer one only when it is needed."""


def build_release(
    project: Path, max_file_mib: float, include: str = "", dest: str = "results"
) -> Release:
    """List and hash the project's files. Raises UsageError for an unreadable one or for an empty
    project."""
    included, own = listed(include), os.path.normpath(dest).replace(os.sep, "/")
    found = list_files(project)
    found.paths += find_included(project, included, own)
    untracked = {path for path in found.paths if path not in found.tracked}
    made = folders_made(project, untracked)
    fetched = {path for path in untracked if is_fetched(path, own)}
    left_out = found.left_out + sorted(made.items())
    if fetched or any(row[0] == f"{own}/" for row in left_out):
        left_out = [row for row in left_out if row[0] != f"{own}/"] + [(f"{own}/", FETCHED_RUNS)]
    skipped = fetched | {path for path in untracked if path.startswith(tuple(made))}
    entries: list[FileEntry] = []
    pointers: list[str] = []
    too_large: dict[str, int] = {}
    wanted = {*found.paths} - skipped
    for path in sorted(wanted, key=lambda name: name.encode("utf-8", "surrogateescape")):
        reason = reason_to_leave(project, path, max_file_mib, included)
        if reason == LEADS_OUT and is_included(path, included):
            raise UsageError(
                f"remote.include names {path}, {LEADS_OUT}", step="release", remedy=HELP[LEADS_OUT]
            )
        entry, head = (None, b"") if reason else read_entry(project, path, found.modes.get(path))
        small = entry is not None and entry.size < LONGER_THAN_KEYS
        if small and is_private_key(path, head) and not is_included(path, included):
            reason = "holds a private key"
        if reason:
            left_out.append((path, reason))
            if reason.startswith(OVER_LIMIT):
                too_large[path] = os.lstat(project / path).st_size
        elif entry:
            entries.append(entry)
            pointers += [path] if head.startswith(LFS_POINTER) else []
    if not entries:
        why, remedy = why_nothing(project)
        raise UsageError(f"no files to send in {project}{why}", step="release", remedy=remedy)
    left_out.sort(key=lambda row: -too_large.get(row[0], 0))  # the largest is told first
    origin = describe_origin(project)
    return Release(tree_hash(entries), tuple(entries), tuple(left_out), tuple(pointers), origin)


def read_entry(project: Path, path: str, mode: int | None) -> tuple[FileEntry | None, bytes]:
    with refusing_unreadable("release", "mend its rights or ignore it"):
        return entry_of(project, path, mode)


@contextlib.contextmanager
def refusing_unreadable(step: str, remedy: str) -> Iterator[None]:
    """What can't be read is never passed over. Raises UsageError that names it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        text = f"{error.filename} can't be read: {error.strerror or error}"
        raise UsageError(text, step=step, remedy=remedy) from None


def stop_walk(error: OSError) -> NoReturn:
    """For os.walk, which passes over folders that it can't read."""
    raise error


def entry_of(
    project: Path, path: str, mode: int | None, follow: bool = False
) -> tuple[FileEntry | None, bytes]:
    """The entry and the file's first bytes; None for a file that git knows but that is gone.
    `follow`: what a link leads to. Raises OSError that names the file."""
    head = b""
    place = f"{project}/{path}"  # ten thousand of them: a Path each would cost a third
    try:
        status = os.stat(place) if follow else os.lstat(place)
        if stat.S_ISLNK(status.st_mode):
            target = os.fsencode(os.readlink(place).replace(os.sep, "/"))
            return FileEntry(path, SYMLINK, len(target), hashlib.sha256(target).hexdigest()), b""
        digest, size = hashlib.sha256(), 0
        with open(place, "rb", buffering=0) as file:
            while data := file.read(1 << 20):
                digest.update(data)
                size += len(data)
                head = head or data[:4096]
    except FileNotFoundError:
        return None, b""
    except OSError as error:
        error.filename = place  # a read that fails names none
        raise
    if mode is None:
        mode = 0o755 if status.st_mode & stat.S_IXUSR and os.name != "nt" else 0o644
    return FileEntry(path, mode, size, digest.hexdigest()), head


def content_of(
    project: Path, entry: FileEntry, begin: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """Its bytes [begin, end), in chunks. Raises TransferFailed for a file that is gone by now, or
    shorter; any other change is found out by its hash on the other end."""
    place = project / entry.path
    left = (entry.size if end is None else end) - begin
    with contextlib.suppress(OSError):
        if entry.mode == SYMLINK:
            yield os.fsencode(os.readlink(place).replace(os.sep, "/"))[begin:]
            return
        with open(place, "rb") as file:
            file.seek(begin)
            while left and (data := file.read(min(protocol.CHUNK, left))):
                left -= len(data)
                yield data
            if not left:
                return
    text = f"{place} changed or went away while it was being sent"
    raise TransferFailed(text, remedy="run the same command again")


def upload_frames(
    project: Path,
    entries: Iterable[FileEntry],
    missing: frozenset[str],
    partial: Mapping[str, int] | None = None,
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Frames of contents: pieces packed together, compressed where that gains. Each content goes
    once.

    `partial`: of how many the server has so many bytes already; they are not sent again.
    """
    wanted = {entry.sha256: entry for entry in entries if entry.sha256 in missing}
    begun = {
        sha256: have
        for sha256, have in (partial or {}).items()
        if sha256 in wanted and 0 < have <= wanted[sha256].size
    }
    pieces: list[list[Any]] = []
    data = bytearray()
    for sha256, entry in wanted.items():
        left = entry.size - begun.get(sha256, 0)
        if not left:
            pieces.append([sha256, 0, True])
        for piece in content_of(project, entry, begun.get(sha256, 0)):
            left -= len(piece)
            pieces.append([sha256, len(piece), left <= 0])
            data += piece
            if len(data) >= protocol.CHUNK or len(pieces) >= 2000:
                yield frame_of(pieces, bytes(data), begun)
                pieces, data = [], bytearray()
    if pieces:
        yield frame_of(pieces, bytes(data), begun)


def frame_of(
    pieces: list[list[Any]], data: bytes, begun: dict[str, int]
) -> tuple[dict[str, Any], bytes]:
    """Takes out of `begun` what this frame goes on with."""
    blob, packed = protocol.pack(data)
    header: dict[str, Any] = {"pieces": pieces, "packed": packed}
    if goes_on := {sha256: begun.pop(sha256) for sha256, _, _ in pieces if sha256 in begun}:
        header["from"] = goes_on
    return header, blob
