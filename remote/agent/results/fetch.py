"""A run's files: what there is, and their bytes from any offset, hashed."""

import hashlib
import io
import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from remote.agent.releases.releases import release_of
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import Layout, place_in
from remote.agent.root.roots import require_owner
from remote.agent.run_files.outputs import find_outputs, link_target, narrow, told
from remote.agent.run_files.records import Found, find_run, read_mark
from remote.agent.shared import protocol

SOURCE = "source/"
ROWS = 2000
"""Files of one event: a run may have made any number of them."""


@operation("fetch_manifest")
def fetch_manifest(call: Call, run: str, results: Optional[List[str]] = None) -> Dict[str, Any]:
    """What the run has made, as it stands, in events `files`: path, size, mode, for the release's
    files their hash (else None), for the run's own when they were changed.

    `left`: what stays here, as (path, bytes, why, whether it would be lost with the run). `seen`: a
    hash over what was there, for `fetch_done`; `marked`: what a laptop has of exactly that
    (complete, narrowed, None).
    """
    require_owner(call)
    layout = call.layout
    described = find_run(layout, run)
    release = release_of(layout, described.asked.release)
    outputs = find_outputs(described.path, release)
    seen = outputs.seen()
    narrow(outputs, results or [])
    files: List[List[Any]] = [
        [path, size, mode, None, round(status.st_mtime, 3)]
        for path, size, mode, status in outputs.files
    ]
    files += [[SOURCE + path, size, mode, sha256] for path, mode, size, sha256 in release]
    for first in range(0, len(files), ROWS):
        call.event(files=files[first : first + ROWS])
    mark = read_mark(described.path, described.detail)
    marked = (
        None if mark.get("seen") != seen else "narrowed" if mark.get("narrowed") else "complete"
    )
    return {"run": described.tell(), "left": told(outputs), "seen": seen, "marked": marked}


@operation("fetch_read")
def fetch_read(call: Call, run: str, ranges: List[Any]) -> Dict[str, Any]:
    """Send ranges [path, have, hash of the first `have` bytes or None, end].

    For each: an event `file` with `offset` (`have` if those bytes are the same here, else 0), the
    bytes up to `end` as blobs of events, and `done` with the hash over all of [0, end), or with
    None if the file is gone or shorter by now.
    """
    layout = call.layout
    described = find_run(layout, run)
    for path, have, have_sha256, end in ranges:
        if (
            not isinstance(path, str)
            or not isinstance(have, int)
            or not isinstance(end, int)
            or not 0 <= have <= end
        ):
            raise Refusal("ProtocolError", f"a wrong range of {path!r:.80}")
        try:
            file = _open(layout, described, path)
        except FileNotFoundError:
            call.event(file=path, offset=0, done=None)
        except OSError as error:
            call.event(file=path, offset=0, done=None, why=error.strerror)
        else:
            _send_file(call, file, Range(path, have, have_sha256, end))
    return {}


class Lane(NamedTuple):
    """Of [start, end) of a file every `step`-th piece of `unit` bytes."""

    run: str
    path: str
    start: int
    end: int
    unit: int
    step: int


@operation("fetch_lane", takes=Lane)
def fetch_lane(call: Call, lane: Lane) -> Dict[str, Any]:
    """Send them: of each an event `at` with its place, and the bytes. Ends early, with `short`,
    where the file has become shorter."""
    if not 0 < lane.unit <= protocol.CHUNK or lane.step < 1:
        raise Refusal("ProtocolError", "a wrong piece of a file")
    with _open_for(call.layout, lane.run, lane.path) as file:
        for position in range(lane.start, lane.end, lane.unit * lane.step):
            wanted = min(lane.unit, lane.end - position)
            file.seek(position)
            data = file.read(wanted)
            if len(data) < wanted:
                return {"short": True}
            call.event(data, at=position)
    return {}


@operation("fetch_hash")
def fetch_hash(call: Call, run: str, path: str, end: int) -> Dict[str, Any]:
    """The hash over the bytes [0, end) of a file; None if it is gone, or shorter by now."""
    try:
        file = _open_for(call.layout, run, path)
    except OSError:
        return {"sha256": None}
    with file:
        length, digest = _hash_start(file, end)
    return {"sha256": digest.hexdigest() if length == end else None}


def _open_for(layout: Layout, run: str, path: str) -> Any:
    return _open(layout, find_run(layout, run), path)


def _open(layout: Layout, described: Found, path: str) -> Any:
    """The file for a path of the manifest. Refuses what is not inside the run or its release;
    raises OSError where it can't be read."""
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise Refusal("ProtocolError", f"not a path inside the run: {path!r:.80}")
    base = described.path
    if path.startswith(SOURCE):
        base, path = layout.release(described.asked.release), path[len(SOURCE) :]
    place = place_in(base, path)
    if not (os.path.realpath(os.path.dirname(place)) + b"/").startswith(
        os.path.realpath(os.fsencode(base)) + b"/"
    ):
        raise Refusal("ProtocolError", f"not a path inside the run: {path!r:.80}")
    if os.path.islink(place):
        return io.BytesIO(link_target(base, path)[0])
    return open(place, "rb")


class Range(NamedTuple):
    """Of a file, up to `end`. The laptop has the first `have` bytes, with that hash."""

    path: str
    have: int
    have_sha256: Optional[str]
    end: int


def _send_file(call: Call, file: Any, asked: Range) -> None:
    with file:
        offset, digest = _skip_known(file, asked)
        fields: Dict[str, Any] = {"file": asked.path, "offset": offset}
        while True:
            data = file.read(min(protocol.CHUNK, asked.end - offset))
            digest.update(data)
            offset += len(data)
            if offset == asked.end or not data:
                whole = offset == asked.end
                call.event(data, **fields, done=digest.hexdigest() if whole else None)
                return
            call.event(data, **fields)
            fields = {}


def _skip_known(file: Any, asked: Range) -> Tuple[int, Any]:
    """Behind what the laptop has where that is the same here, else at the beginning; with the hash
    of what lies before."""
    if asked.have and asked.have_sha256:
        length, digest = _hash_start(file, asked.have)
        if length == asked.have and digest.hexdigest() == asked.have_sha256:
            return length, digest
        file.seek(0)
    return 0, hashlib.sha256()


def _hash_start(file: Any, count: int) -> Tuple[int, Any]:
    """The hash of the first `count` bytes, and how many there were."""
    digest, done = hashlib.sha256(), 0
    while done < count:
        data = file.read(min(1 << 20, count - done))
        if not data:
            break
        digest.update(data)
        done += len(data)
    return done, digest
