"""Fetched runs, below the project's `results/`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from remote.agent.shared.reading import read
from remote.agent.shared.run_records import FILE_OF
from remote.errors import TransferFailed, UsageError
from remote.records import Asked, Run, RunDetail

R = TypeVar("R", Asked, RunDetail)


def find_run(results: Path, name: str, having: str = "summary.json") -> Path:
    """A fetched run: a path, `latest` (of those `having` that file), its id, the beginning of it,
    or the name it was given."""
    if os.sep in name and Path(name).is_dir():
        return Path(name)
    marks = ("run.json", "train.log", having)
    runs = sorted(
        (path for path in results.glob("[!.]*") if any((path / it).exists() for it in marks)),
        reverse=True,
    )
    if name == "latest":
        # Of those that can be handed in: a failed attempt may be newer.
        found = [path for path in runs if (path / having).exists()] or runs
    else:
        found = [path for path in runs if path.name == name]
        found = found or [
            path for path in runs if path.name.startswith(name) or load(Asked, path).name == name
        ]
    if not found:
        text = f"{name}: no such run in {results}"
        if name == "latest":
            text = f"there is no run in {results}"
        raise UsageError(text, remedy="fetch it first: fab -H … fetch-results")
    if len(found) > 1 and name != "latest":
        raise UsageError(
            f"{name} fits several runs: {', '.join(path.name for path in found[:4])}",
            remedy="name one of them in full",
        )
    return found[0]


def read_mapping(run: Path | None, name: str) -> dict[str, Any]:
    """A record of a fetched run; empty where there is none, or it is no JSON object."""
    try:
        value = json.loads((run / name).read_text(encoding="utf-8")) if run else {}
    except (OSError, ValueError):
        value = {}
    return value if isinstance(value, dict) else {}


def load(kind: type[R], run: Path | None) -> R:
    """run.json or state.json of a fetched run."""
    return read(kind, read_mapping(run, FILE_OF[kind]))


def went_on_elsewhere(directory: Path, run: Run) -> bool:
    """Whether what was fetched of a run has an attempt that its server, asked now, knows nothing
    of. An attempt is known by the time of its start; a record that can't be read tells none."""
    if run.state == "unknown":
        return False
    mine = [*load(RunDetail, directory).starts]
    if not mine[-1] or mine[-1] in mine[:-1]:
        mine.pop()  # not started yet
    return mine != [*run.detail.starts[: len(mine)]]


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """What is written below `place`. Raises TransferFailed where it can't be."""
    try:
        yield
    except OSError as error:
        text = f"{place} can't be written: {error.strerror or error}"
        remedy = "set remote.dest to another place"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space (or remove files), or set remote.dest to another place"
        raise TransferFailed(text, remedy=remedy) from None


def pending_in(dest: Path) -> Path:
    """What is remembered beside the results. A folder that is made for them holds nothing of the
    project, and git is told so."""
    place, is_new = dest / ".pending", not dest.exists()
    place.mkdir(parents=True, exist_ok=True)
    if is_new:
        (dest / ".gitignore").write_text("*\n")
    return place


def room_at(place: Path) -> tuple[Path, int]:
    """The nearest folder that is there already, and the bytes that are free at it."""
    while not place.exists():
        place = place.parent
    return place, shutil.disk_usage(place).free


def lock_file(path: Path) -> IO[bytes] | None:
    """The open file, locked until it is closed or we end; None where another process has it.
    Windows and some network disks have no such lock."""
    file = path.open("ab")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except (ImportError, OSError):
        pass
    return file
