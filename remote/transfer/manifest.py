"""The server's list of a run's files, checked: names that this computer can hold and that lead
nowhere else."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from remote.agent.shared.trees import SYMLINK
from remote.errors import ProtocolError

SOURCE = "source/"
PARTS = ".fetch"
"""In a run's directory here: what has not arrived whole; its names are hashes of the paths."""
RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"com{i}" for i in range(1, 10)),
    *(f"lpt{i}" for i in range(1, 10)),
}


@dataclass(frozen=True)
class RemoteFile:
    """One line of the manifest. `sha256` is known beforehand for the release's files only;
    `changed`: when the run wrote it last, in seconds since 1970 by the server's clock."""

    path: str
    size: int
    mode: int
    sha256: str | None
    changed: float | None = None


@dataclass(frozen=True)
class Left:
    """Something of the run that does not come. `lost`: its bytes would go with the run."""

    path: str
    size: int
    why: str
    lost: bool


def checked_manifest(
    rows: Iterable[Any], system: str = sys.platform
) -> tuple[list[RemoteFile], list[Left]]:
    """The server's list of files, and those that this system can't hold.

    Raises ProtocolError for what could leave the run's directory here or is no file list.
    """
    files, left, paths, taken = [], [], set(), set()
    for row in rows:
        try:
            path, size, mode, sha256, *more = row
        except (TypeError, ValueError):
            raise ProtocolError("the list of files has the wrong form") from None
        if not isinstance(path, str) or not safe_path(path):
            raise ProtocolError(
                f"the server names a file that may not be written here: {path!r:.120}"
            )
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
        known = bool(more) and isinstance(more[0], (int, float)) and 0 <= more[0] < 1 << 40
        files.append(RemoteFile(path, size, mode, sha256, float(more[0]) if known else None))
    return files, left


def safe_path(path: str) -> bool:
    """A relative path of plain names that stays below where it is put, and away from our own
    parts."""
    if (
        not path
        or len(path) > 4000
        or path.startswith(("/", PARTS + "/"))
        or "\0" in path
        or path == PARTS
    ):
        return False
    parts = path.split("/")
    return not any(
        part in ("", ".", "..") or len(part.encode("utf-8", "surrogateescape")) > 255
        for part in parts
    )


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
        bad & set(part)
        or part.endswith((" ", "."))
        or part.split(".")[0].lower() in RESERVED
        or min(part) < " "
        for part in path.split("/")
    )


def parse_left(rows: Iterable[Any]) -> list[Left]:
    """What the server says stays there; raises ProtocolError for anything else."""
    found = []
    for row in rows:
        if (
            len(row) != 4
            or not isinstance(row[0], str)
            or type(row[1]) is not int
            or not isinstance(row[2], str)
        ):
            raise ProtocolError("the list of what stays there has the wrong form")
        found.append(Left(row[0], row[1], row[2], row[3] is not False))
    return found
