"""A run's files: what there is, and their bytes from any offset, hashed."""

import fnmatch
import hashlib
import os
import stat
from typing import Any, Dict, Iterator, List, Optional, Tuple

from . import protocol
from .calls import Call, Refusal, operation
from .paths import HASH, Layout, resolve_root
from .releases import read_manifest
from .runs import describe_run, find_run

HIDDEN = ("work", "tmp")
SOURCE = "source/"


@operation("fetch_manifest")
def fetch_manifest(call: Call, root: str, run: str, results: Optional[List[str]] = None) -> Dict[str, Any]:
    """The run's files as they stand: path, size, mode, and for the release's files their hash (else None)."""
    layout = Layout(resolve_root(root))
    described = describe_run(layout, find_run(layout, run)["run"])
    files = [list(entry) for entry in run_files(described["path"], results or [])]
    tree = described["release"]
    if isinstance(tree, str) and HASH.match(tree):
        files += [[SOURCE + path, size, mode, sha256] for path, mode, size, sha256 in read_manifest(layout, tree)]
    return {"run": described, "files": files}


def run_files(directory: str, results: List[str]) -> Iterator[Tuple[str, int, int, None]]:
    """Regular files of the run without work/, temporary and hidden ones; of work/, what matches `results`."""
    for path, status in _walk(directory, ""):
        top = path.split("/")[0]
        if top in HIDDEN:
            inside = path[len(top) + 1 :]
            if top != "work" or not any(matches(inside, pattern) for pattern in results):
                continue
        yield path, status.st_size, 0o755 if status.st_mode & 0o100 else 0o644, None


def matches(path: str, pattern: str) -> bool:
    """A pattern names a file, a directory with all below it, or is a shell pattern over the whole path."""
    pattern = pattern.strip("/")
    return path == pattern or path.startswith(pattern + "/") or fnmatch.fnmatchcase(path, pattern)


def _walk(directory: str, below: str) -> Iterator[Tuple[str, os.stat_result]]:
    try:
        with os.scandir(os.path.join(directory, below)) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name.endswith((".tmp", ".part")) or entry.is_symlink():
            continue
        path = f"{below}/{entry.name}" if below else entry.name
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(directory, path)
            else:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield path, status
        except OSError:
            continue


@operation("fetch_read")
def fetch_read(call: Call, root: str, run: str, ranges: List[Any]) -> Dict[str, Any]:
    """Send ranges [path, have, hash of the first `have` bytes or None, end].

    For each: an event `file` with `offset` (`have` if those bytes are the same here, else 0), the bytes up to `end` as blobs
    of events, and `done` with the hash over all of [0, end), or with None if the file is gone or shorter by now.
    """
    layout = Layout(resolve_root(root))
    described = describe_run(layout, find_run(layout, run)["run"])
    sent = 0
    for path, have, have_sha256, end in ranges:
        if not isinstance(path, str) or not isinstance(have, int) or not isinstance(end, int) or not 0 <= have <= end:
            raise Refusal("ProtocolError", f"a wrong range of {path!r:.80}")
        sent += _send_file(call, _open(layout, described, path), path, have, have_sha256, end)
    return {"sent": sent}


def _open(layout: Layout, described: Dict[str, Any], path: str) -> Optional[Any]:
    """The file for a path of the manifest; None if it is gone. Refuses what is not inside the run or its release."""
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise Refusal("ProtocolError", f"not a path inside the run: {path!r:.80}")
    base = described["path"]
    if path.startswith(SOURCE):
        base, path = layout.release(str(described["release"])), path[len(SOURCE) :]
    place = os.path.join(os.fsencode(base), path.encode("utf-8", "surrogateescape"))
    if os.path.islink(place):
        import io

        return io.BytesIO(os.fsencode(os.readlink(place)))
    if not os.path.realpath(place).startswith(os.path.realpath(os.fsencode(base)) + b"/"):
        raise Refusal("ProtocolError", f"not a path inside the run: {path!r:.80}")
    try:
        return open(place, "rb", buffering=0)
    except OSError:
        return None


def _send_file(call: Call, file: Optional[Any], path: str, have: int, have_sha256: Optional[str], end: int) -> int:
    if file is None:
        call.event(file=path, offset=0, done=None)
        return 0
    with file:
        digest, offset = hashlib.sha256(), 0
        if have and have_sha256:
            offset = _skip(file, digest, have)
            if offset != have or digest.hexdigest() != have_sha256:
                digest, offset = hashlib.sha256(), 0
                file.seek(0)
        first = _read(file, min(protocol.CHUNK, end - offset))
        digest.update(first)
        start, offset = offset, offset + len(first)
        if offset == end:
            call.event(first, file=path, offset=start, done=digest.hexdigest())
            return len(first)
        call.event(first, file=path, offset=start)
        sent = len(first)
        while offset < end:
            data = _read(file, min(protocol.CHUNK, end - offset))
            if not data:
                call.event(done=None)
                return sent
            digest.update(data)
            call.event(data)
            offset += len(data)
            sent += len(data)
        call.event(done=digest.hexdigest())
        return sent


def _read(file: Any, count: int) -> bytes:
    data = file.read(count)
    while data and len(data) < count:
        more = file.read(count - len(data))
        if not more:
            break
        data += more
    return bytes(data)


def _skip(file: Any, digest: Any, count: int) -> int:
    """Hash the first `count` bytes; returns how many there were."""
    done = 0
    while done < count:
        data = file.read(min(1 << 20, count - done))
        if not data:
            break
        digest.update(data)
        done += len(data)
    return done


