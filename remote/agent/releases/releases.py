"""Releases: immutable trees named by their hash, assembled aside and renamed into place."""

import collections
import os
from typing import Any, Dict, List, Optional, Tuple

from remote.agent.releases.contents import (
    forget,
    hashes,
    known_contents,
    places_of,
    receive,
    write_tree,
)
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.disk import require_room
from remote.agent.root.paths import (
    HASH,
    Layout,
    list_names,
    new_directory,
    read_json,
    remove_directory,
    remove_leftovers,
    write_json,
    write_link,
)
from remote.agent.root.roots import locked, prepare_root
from remote.agent.root.run_json import load
from remote.agent.shared.run_records import Asked
from remote.agent.shared.trees import SYMLINK, Entry, tree_hash

KEEP_RELEASES = 10
SEARCHED_RELEASES = 5
"""Contents are looked for in so many of the newest releases."""


def checked_manifest(tree: str, manifest: List[Any]) -> List[Entry]:
    """The manifest as entries; raises Refusal for anything that could leave the release's
    directory."""
    entries = []
    for path, mode, size, sha256 in manifest:
        parts = path.split("/")
        if (
            not path
            or path.startswith("/")
            or "\0" in path
            or any(part in ("", ".", "..") for part in parts)
        ):
            raise Refusal("ProtocolError", f"not a path inside a release: {path!r:.120}")
        if (
            mode not in (0o644, 0o755, SYMLINK)
            or not HASH.match(sha256)
            or not isinstance(size, int)
            or size < 0
        ):
            raise Refusal("ProtocolError", f"a wrong entry in the manifest: {path!r:.120}")
        entries.append((path, mode, size, sha256))
    if tree_hash(entries) != tree:
        raise Refusal("ProtocolError", "the release's hash is not that of its manifest")
    return entries


def list_releases(layout: Layout) -> List[Dict[str, Any]]:
    """Newest first: tree, time."""
    return [{"tree": tree, "time": when} for tree, when in _by_age(layout)]


def _by_age(layout: Layout) -> List[Tuple[str, float]]:
    dated = []
    for name in filter(HASH.match, list_names(layout.releases)):
        try:
            dated.append((name, os.stat(layout.manifest(name)).st_mtime))
        except OSError:
            continue
    return sorted(dated, key=lambda pair: -pair[1])


def current_release(layout: Layout) -> Optional[str]:
    try:
        return os.path.basename(os.readlink(layout.current))
    except OSError:
        return None


def require_release(layout: Layout, tree: str) -> None:
    if not os.path.isdir(layout.release(tree)):
        problem = f"the release {tree[:12]} is not on the server"
        raise Refusal("NotFound", problem, "deploy first: fab -H … deploy")


def read_manifest(layout: Layout, tree: str) -> List[Entry]:
    return stored_entries(layout.manifest(tree))


def stored_entries(path: str) -> List[Entry]:
    """Of a release or a set of images; empty where they are not known."""
    entries = (read_json(path) or {}).get("entries")
    return [(e[0], e[1], e[2], e[3]) for e in entries] if isinstance(entries, list) else []


def release_of(layout: Layout, tree: str) -> List[Entry]:
    """The code that a run was given; empty where its release is unknown."""
    return read_manifest(layout, tree) if HASH.match(tree) else []


def known(layout: Layout, entries: List[Entry]) -> Dict[str, bytes]:
    """Where their contents already lie: received by a deploy that was cut off, or part of a
    release."""
    trees = (
        (layout.release(tree), read_manifest(layout, tree))
        for tree, _ in _by_age(layout)[:SEARCHED_RELEASES]
    )
    return known_contents(layout.incoming, trees, entries)


def missing_contents(layout: Layout, tree: str, manifest: List[Any]) -> List[str]:
    entries = checked_manifest(tree, manifest)
    return sorted(hashes(entries) - set(known(layout, entries)))


@operation("release_put")
def release_put(
    call: Call, tree: str, manifest: List[Any], origin: str, who: str
) -> Dict[str, Any]:
    """Receive what is missing, assemble the release, make it current. Repeating it is
    harmless."""
    layout = call.layout
    entries = checked_manifest(tree, manifest)
    prepare_root(call)
    with locked(call, layout.lock, who):
        require_space(layout, entries)
        there = known(layout, entries)
        receive(call, layout.incoming, entries, there)
        if not os.path.isdir(layout.release(tree)):
            remove_leftovers(layout.releases)
            assemble(layout, tree, entries, there, origin)
        make_current(layout, tree)
        forget(layout.incoming, entries)
        _prune(layout)
        # What was linked until now is untouched since it was verified.
        os.utime(layout.manifest(tree))
    return {}


@operation("release_use")
def release_use(call: Call, tree: str, who: str) -> Dict[str, Any]:
    """Make a release that is already here the current one."""
    layout = call.layout
    prepare_root(call)
    with locked(call, layout.lock, who):
        make_current(layout, tree)
    return {}


def make_current(layout: Layout, tree: str) -> None:
    if current_release(layout) != tree:
        write_link(layout.current, os.path.join("releases", tree))


def require_space(layout: Layout, entries: List[Entry]) -> None:
    need = sum(max(size, 4096) for _, _, size, _ in entries) * 2
    require_room(layout.releases, need, len(entries) * 2, "the release needs")


def assemble(
    layout: Layout, tree: str, entries: List[Entry], there: Dict[str, bytes], origin: str
) -> None:
    uses = collections.Counter(sha256 for _, _, _, sha256 in entries)
    problem = "the release is not complete on the server"
    places = places_of(layout.incoming, entries, there, problem)
    incoming = os.fsencode(layout.incoming)
    above = len(os.fsencode(layout.releases)) + 1
    complete: Dict[bytes, int] = {}

    def source(sha256: str) -> Tuple[bytes, str]:
        uses[sha256] -= 1
        place = places[sha256]
        if place.startswith(incoming):
            return place, "copy" if uses[sha256] else "take"
        known_tree = place[above:].split(b"/", 1)[0]
        if known_tree not in complete:
            manifest = layout.manifest(os.fsdecode(known_tree))
            complete[known_tree] = os.stat(manifest).st_mtime_ns
        # A file's status changes with every write, and with every new name.
        untouched = os.lstat(place).st_ctime_ns <= complete[known_tree]
        return place, "share" if untouched else "copy"

    with new_directory(layout.release(tree)) as aside:
        write_tree(aside, entries, source)
        write_json(layout.manifest(tree), {"entries": entries, "origin": origin}, indent=None)


def _prune(layout: Layout) -> None:
    """Remove old releases that no run was made from."""
    try:
        runs = [os.path.join(layout.runs, name) for name in os.listdir(layout.runs)]
    except OSError:
        return
    used = {current_release(layout), *(load(Asked, run).release for run in runs)}
    for tree, _ in _by_age(layout)[KEEP_RELEASES:]:
        if tree not in used:
            remove_directory(layout.release(tree))
            os.unlink(layout.manifest(tree))
