"""What a run has made: every file that it created or changed, beside the code that it was given."""

import fnmatch
import hashlib
import os
import re
import stat
from typing import Any, Dict, Iterator, List, Tuple

from remote.agent.root.paths import hash_file, place_in, read_json, write_json
from remote.agent.run_files.private import ADDRESS, VARIABLES
from remote.agent.shared.names import NODE, is_late
from remote.agent.shared.trees import SYMLINK, Entry

COPIED = ".copied.json"
"""In a run's directory, written once its copy of the code was complete: what is older than this
file is as it was copied."""
STEP = ".step"
"""In a run's directory: which of its command's lines is being run, as it stands there."""
SHOWN = ".terminal.json"
"""In a run's directory: the line of its terminal that is not finished yet, and whether it waits for
somebody's answer."""
OWN = (".attempts", ".spare", ADDRESS, STEP, VARIABLES, ".fetched.json", SHOWN, ".modules", COPIED)
"""Ours, not the run's; among them what is secret."""
CACHES = (
    "__pycache__",
    ".cache",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".ipynb_checkpoints",
)
CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55"
"""Begins the file CACHEDIR.TAG of a folder that is a cache (bford.info/cachedir)."""
UNFINISHED = re.compile(r".+\.[0-9a-f]{8}\.tmp\Z")
"""A record of ours that is being written, or a checkpoint of our trainer's."""
SAVED = re.compile(r"(seed-\d+/)?checkpoints\Z")
CLOCK_NS = 2_000_000_000
"""File systems' clocks are as coarse as this."""
MOST = 40


class Outputs:
    """`files`: (path, size, mode, status) in order; `left`: what stays, as (path, bytes, why,
    whether bytes would be lost)."""

    def __init__(self) -> None:
        self.files: List[Tuple[str, int, int, os.stat_result]] = []
        self.left: List[Tuple[str, int, str, bool]] = []

    def seen(self) -> str:
        """A hash over what the run made, as it stands: another one later means that something
        changed."""
        digest = hashlib.sha256()
        for path, size, mode, status in self.files:
            if not is_late(path):
                row = f"{size} {mode:o} {status.st_mtime_ns} {status.st_ctime_ns} "
                digest.update(row.encode() + path.encode("utf-8", "surrogateescape") + b"\0")
        for path, _, why, lost in self.left:
            if lost:
                digest.update(f"{why} ".encode() + path.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()


def find_outputs(directory: str, release: List[Entry], known_as: str = "") -> Outputs:
    """Everything of the run but caches, environments and the code that is still as it was in its
    release.

    `known_as`: where the run's directory was when its links were made, if it is elsewhere now.
    """
    outputs = Outputs()
    code = {path: (mode, size, sha256) for path, mode, size, sha256 in release}
    window = copied_window(directory)
    for path, status in _walk(directory, "", outputs):
        if path.startswith("work/"):
            entry = code.get(path[len("work/") :])
            if entry is not None and is_unchanged(
                os.path.join(directory, path), status, entry, window
            ):
                continue
        if stat.S_ISLNK(status.st_mode):
            target, outside = link_target(directory, path, known_as)
            if outside:
                outputs.left.append(
                    (path, 0, f"a link that leads out of the run, to {os.fsdecode(target)}", False)
                )
            else:
                outputs.files.append((path, len(target), SYMLINK, status))
        elif stat.S_ISREG(status.st_mode):
            outputs.files.append(
                (path, status.st_size, 0o755 if status.st_mode & 0o100 else 0o644, status)
            )
        else:
            outputs.left.append((path, 0, "neither a file nor a folder", False))
    return outputs


def narrow(outputs: Outputs, patterns: List[str]) -> None:
    """Leave of work/ what matches one of `patterns`; the rest is told, summed up by its first
    folder. A pattern may begin with work/, as what is told of the rest does."""
    if not patterns:
        return
    inner = [one[len("work/") :] if one.startswith("work/") else one for one in patterns]
    idle = dict(zip(inner, patterns))
    kept: List[Tuple[str, int, int, os.stat_result]] = []
    rest: Dict[str, Tuple[int, int]] = {}
    for row in outputs.files:
        inside = row[0][len("work/") :] if row[0].startswith("work/") else None
        fitting = [] if inside is None else [one for one in inner if matches(inside, one)]
        for one in fitting:
            idle.pop(one, None)
        if inside is None or fitting:
            kept.append(row)
        else:
            top, slash, _ = inside.partition("/")
            count, size = rest.get(top + slash, (0, 0))
            rest[top + slash] = (count + 1, size + row[1])
    outputs.files = kept
    vain = f" ({', '.join(idle.values())}: no such file)" if idle else ""
    for name, (count, size) in sorted(rest.items()):
        files = f"{count} file{'s' * (count > 1)}"
        outputs.left.append(
            (f"work/{name}", size, f"{files}, no pattern of remote.results matches{vain}", True)
        )


def matches(path: str, pattern: str) -> bool:
    """A pattern names a file, a folder with all below it, or is a shell pattern over the path or a
    folder on its way."""
    pattern = pattern.strip("/")
    parts = path.split("/")
    return any(
        fnmatch.fnmatchcase("/".join(parts[:count]), pattern) for count in range(1, len(parts) + 1)
    )


def mark_copied(directory: str, begin_ns: int) -> None:
    """Called when the run's copy of the code, begun at that ctime, is complete, before anything of
    the run starts."""
    write_json(os.path.join(directory, COPIED), {"from_ns": begin_ns})


def copied_window(directory: str) -> Tuple[int, int]:
    """Between which times the code was copied, by the file system's own clock; empty where that is
    not known."""
    try:
        place = os.path.join(directory, COPIED)
        begin = (read_json(place) or {}).get("from_ns")
        return (begin, os.stat(place).st_ctime_ns - CLOCK_NS) if isinstance(begin, int) else (0, 0)
    except OSError:
        return 0, 0


def is_unchanged(
    place: str, status: os.stat_result, entry: Tuple[int, int, str], window: Tuple[int, int]
) -> bool:
    """Whether a file of the code is as its release has it. A file's ctime, unlike its mtime, can't
    be set by a program."""
    mode, size, sha256 = entry
    if (mode == SYMLINK) != stat.S_ISLNK(status.st_mode) or size != status.st_size:
        return False
    if window[0] <= status.st_ctime_ns < window[1]:
        return True
    try:
        if mode == SYMLINK:
            return hashlib.sha256(os.fsencode(os.readlink(place))).hexdigest() == sha256
        return hash_file(place) == sha256
    except OSError:
        return False


def link_target(directory: str, path: str, known_as: str = "") -> Tuple[bytes, bool]:
    """What a link says, made relative where it leads to another place of the run; and whether it
    leads out of the run.

    Raises OSError where it is gone.
    """
    base = os.fsencode(directory)
    place = place_in(base, path)
    target = os.readlink(place)
    folder = os.path.dirname(place)
    if os.path.isabs(target):
        for root in (
            os.fsencode(known_as) or base,
            os.path.realpath(os.fsencode(known_as) or base),
        ):
            if target == root or target.startswith(root + b"/"):
                target = os.path.relpath(
                    target,
                    root if folder == base else os.path.join(root, os.path.relpath(folder, base)),
                )
                break
        else:
            return target, True
    reached = os.path.normpath(os.path.join(folder, target))
    return target, not (reached == base or reached.startswith(base + b"/"))


def _walk(directory: str, below: str, outputs: Outputs) -> Iterator[Tuple[str, os.stat_result]]:
    """Files and links, not through links. What can't be looked into is told in `outputs.left`."""
    try:
        with os.scandir(os.path.join(directory, below)) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        outputs.left.append(
            (below + "/", 0, f"can't be read on the server: {error.strerror}", True)
        )
        return
    for entry in entries:
        unfinished = UNFINISHED.match(entry.name)
        ours = unfinished or entry.name in OWN or entry.name == "tmp"
        if (ours and (not below or NODE.match(below))) or (unfinished and SAVED.match(below)):
            continue
        path = f"{below}/{entry.name}" if below else entry.name
        try:
            if entry.is_dir(follow_symlinks=False):
                if path == "work" or not is_aside(os.path.join(directory, path)):
                    yield from _walk(directory, path, outputs)
            else:
                yield path, entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            outputs.left.append((path, 0, f"can't be read on the server: {error.strerror}", True))


def is_aside(directory: str) -> bool:
    """A cache, or a Python environment: made again by whoever needs it."""
    if os.path.basename(directory) in CACHES:
        return True
    if any(os.path.lexists(os.path.join(directory, name)) for name in ("pyvenv.cfg", "conda-meta")):
        return True
    try:
        with open(os.path.join(directory, "CACHEDIR.TAG"), "rb") as file:
            return file.read(len(CACHE_TAG)) == CACHE_TAG
    except OSError:
        return False


def told(outputs: Outputs) -> List[List[Any]]:
    """`left` for a person: what would be lost first, the rest after so many summed up."""
    rows = sorted(outputs.left, key=lambda row: (not row[3], -row[1], row[0]))
    answer: List[List[Any]] = [list(row) for row in rows[:MOST]]
    if rows[MOST:]:
        size, lost = sum(row[1] for row in rows[MOST:]), any(row[3] for row in rows[MOST:])
        answer.append([f"{len(rows) - MOST} more", size, "of the same kinds", lost])
    return answer
