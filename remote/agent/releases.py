"""Releases: immutable trees named by their hash, assembled aside and renamed into place."""

import hashlib
import os
import secrets
import shutil
import stat
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

from . import protocol
from .calls import Call, Refusal, operation
from .paths import HASH, Layout, mount_of, read_json, resolve_root, write_json
from .roots import lock_project, prepare_root, space_left, unlock_project
from .trees import SYMLINK, Entry, tree_hash

KEEP_RELEASES = 10
SEARCHED_RELEASES = 5
"""Contents are looked for in so many of the newest releases."""


def checked_manifest(tree: str, manifest: List[Any]) -> List[Entry]:
    """The manifest as entries; raises Refusal for anything that could leave the release's directory."""
    entries = []
    for path, mode, size, sha256 in manifest:
        parts = path.split("/")
        if not path or path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in parts):
            raise Refusal("ProtocolError", f"not a path inside a release: {path!r:.120}")
        if mode not in (0o644, 0o755, SYMLINK) or not HASH.match(sha256) or not isinstance(size, int) or size < 0:
            raise Refusal("ProtocolError", f"a wrong entry in the manifest: {path!r:.120}")
        entries.append((path, mode, size, sha256))
    if tree_hash(entries) != tree:
        raise Refusal("ProtocolError", "the release's hash is not that of its manifest")
    return entries


def list_releases(layout: Layout) -> List[Dict[str, Any]]:
    """Newest first: tree, bytes, time."""
    found = []
    for tree, when in _by_age(layout):
        found.append({"tree": tree, "time": when})
    return found


def _by_age(layout: Layout) -> List[Tuple[str, float]]:
    try:
        names = [name for name in os.listdir(layout.releases) if HASH.match(name)]
    except OSError:
        return []
    dated = []
    for name in names:
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


def read_manifest(layout: Layout, tree: str) -> List[Entry]:
    stored = read_json(layout.manifest(tree)) or {}
    entries = stored.get("entries")
    return [(e[0], e[1], e[2], e[3]) for e in entries] if isinstance(entries, list) else []


def known_contents(layout: Layout, wanted: Set[str]) -> Dict[str, bytes]:
    """Where wanted contents already lie on this server: hash → path."""
    found: Dict[str, bytes] = {}
    incoming = os.fsencode(layout.incoming)
    if os.path.isdir(incoming):
        for name in os.listdir(incoming):
            if name.decode("ascii", "replace") in wanted:
                found[name.decode()] = os.path.join(incoming, name)
    for tree, _ in _by_age(layout)[:SEARCHED_RELEASES]:
        if len(found) == len(wanted):
            break
        base = os.fsencode(layout.release(tree))
        for path, mode, size, sha256 in read_manifest(layout, tree):
            if sha256 in wanted and sha256 not in found and mode != SYMLINK:
                place = os.path.join(base, path.encode("utf-8", "surrogateescape"))
                if _is_file_of(place, size):
                    found[sha256] = place
    return found


def _is_file_of(path: bytes, size: int) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def missing_contents(layout: Layout, tree: str, manifest: List[Any]) -> List[str]:
    wanted = {sha256 for _, _, _, sha256 in checked_manifest(tree, manifest)}
    return sorted(wanted - set(known_contents(layout, wanted)))


@operation("release_missing")
def release_missing(call: Call, root: str, tree: str, manifest: List[Any]) -> Dict[str, Any]:
    """For a manifest too large to go with the first call."""
    return {"missing": missing_contents(Layout(resolve_root(root)), tree, manifest)}


@operation("release_put")
def release_put(
    call: Call, root: str, project: str, identity: Optional[str], tree: str, manifest: List[Any], origin: str, who: str
) -> Dict[str, Any]:
    """Receive the missing contents, assemble the release, make it current. Repeating it is harmless."""
    layout = Layout(resolve_root(root))
    entries = checked_manifest(tree, manifest)
    prepare_root(layout, project, identity)
    lock_project(call, layout, who)
    try:
        require_space(layout, entries)
        call.event(ready=True)
        sizes = {sha256: size for _, _, size, sha256 in entries}
        received = receive(call, layout, sizes)
        if not os.path.isdir(layout.release(tree)):
            _remove_leftovers(layout)
            assemble(layout, tree, entries, origin)
        make_current(layout, tree)
        shutil.rmtree(layout.incoming, ignore_errors=True)
        removed = _prune(layout)
    except OSError as error:
        if error.filename is None:
            error.filename = layout.releases  # a write names no file, and people want to know which disk
        raise
    finally:
        unlock_project(layout)
    return {"received": received, "removed": removed, "path": layout.release(tree)}


@operation("release_use")
def release_use(call: Call, root: str, project: str, identity: Optional[str], tree: str, who: str) -> Dict[str, Any]:
    """Make a release that is already here the current one."""
    layout = Layout(resolve_root(root))
    prepare_root(layout, project, identity)
    lock_project(call, layout, who)
    try:
        make_current(layout, tree)
    finally:
        unlock_project(layout)
    return {}


def make_current(layout: Layout, tree: str) -> None:
    if current_release(layout) == tree:
        return
    aside = f"{layout.current}.{secrets.token_hex(4)}.tmp"
    os.symlink(os.path.join("releases", tree), aside)
    os.replace(aside, layout.current)


def require_space(layout: Layout, entries: List[Entry]) -> None:
    need = sum(max(size, 4096) for _, _, size, _ in entries) * 2
    free, inodes = space_left(layout.releases)
    if free < need:
        raise Refusal(
            "ServerUnfit",
            f"the release needs {(need >> 20) + 1} MiB on the disk at {mount_of(layout.releases)}, {free >> 20} MiB are free",
            "free some space (fab … clean), or set remote.root to another disk",
        )
    if inodes is not None and 0 < inodes < len(entries) * 2:
        raise Refusal("ServerUnfit", f"the file system at {layout.root} has {inodes} inodes left, the release needs more")


def receive(call: Call, layout: Layout, sizes: Dict[str, int]) -> int:
    """Store uploaded contents by hash. Each appears under its name only when its hash is right."""
    os.makedirs(layout.incoming, mode=0o700, exist_ok=True)
    total = 0
    partial: Dict[str, _Partial] = {}
    try:
        for header, blob in call.blobs():
            pieces = header["pieces"]
            limit = sum(length for _, length, _ in pieces)
            if limit > protocol.MAX_BLOB:
                raise Refusal("ProtocolError", "an upload frame is too large")
            data = protocol.unpack(blob, limit + 1) if header.get("packed") else blob
            position = 0
            for sha256, length, last in pieces:
                if sha256 not in sizes:
                    raise Refusal("ProtocolError", "an upload that is not in the manifest")
                piece = data[position : position + length]
                position += length
                total += len(piece)
                if sha256 not in partial:
                    partial[sha256] = _Partial(os.path.join(layout.incoming, sha256), sizes[sha256])
                partial[sha256].write(piece)
                if last:
                    partial.pop(sha256).finish(sha256)
    finally:
        for leftover in partial.values():
            leftover.drop()
    return total


class _Partial:
    """A content on its way in."""

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size
        self.length = 0
        self.digest = hashlib.sha256()
        self.temporary = f"{path}.{secrets.token_hex(4)}.tmp"
        self.file = open(self.temporary, "wb")

    def write(self, data: bytes) -> None:
        self.length += len(data)
        if self.length > self.size:
            raise Refusal("ProtocolError", "more bytes than announced")
        self.digest.update(data)
        self.file.write(data)

    def finish(self, sha256: str) -> None:
        self.file.close()
        if self.digest.hexdigest() != sha256:
            self.drop()
            raise Refusal("TransferFailed", "a file changed while it was being sent", "run the same command again")
        os.replace(self.temporary, self.path)

    def drop(self) -> None:
        self.file.close()
        try:
            os.unlink(self.temporary)
        except OSError:
            pass


def assemble(layout: Layout, tree: str, entries: List[Entry], origin: str) -> None:
    places = known_contents(layout, {sha256 for _, _, _, sha256 in entries})
    incoming = os.fsencode(layout.incoming)
    uses: Dict[str, int] = {}
    for _, _, _, sha256 in entries:
        uses[sha256] = uses.get(sha256, 0) + 1
    aside = os.path.join(layout.releases, f".staging-{secrets.token_hex(6)}")
    os.mkdir(aside, 0o700)

    def source(sha256: str) -> Tuple[bytes, bool]:
        if sha256 not in places:
            raise Refusal("TransferFailed", "the release is not complete on the server", "run the same command again")
        uses[sha256] -= 1
        place = places[sha256]
        return place, place.startswith(incoming) and not uses[sha256]

    try:
        write_tree(aside, entries, source)
        write_json(layout.manifest(tree), {"entries": entries, "origin": origin})
        os.rename(aside, layout.release(tree))
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_tree(target: str, entries: List[Entry], source: Callable[[str], Tuple[bytes, bool]]) -> None:
    """Write every entry below `target`. `source(hash)` gives the file that has it and whether it may be moved away."""
    base = os.fsencode(target)
    made = {base}
    for path, mode, _, sha256 in entries:
        place = os.path.join(base, path.encode("utf-8", "surrogateescape"))
        directory = os.path.dirname(place)
        if directory not in made:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            made.add(directory)
        origin, movable = source(sha256)
        if mode == SYMLINK:
            with open(origin, "rb") as file:
                _link_inside(base, place, file.read())
            continue
        if movable:
            os.rename(origin, place)
        else:
            copy_verified(origin, place, sha256)
        os.chmod(place, mode)


def _link_inside(base: bytes, place: bytes, target: bytes) -> None:
    reached = os.path.normpath(os.path.join(os.path.dirname(place), target))
    if os.path.isabs(target) or not (reached == base or reached.startswith(base + b"/")):
        raise Refusal("ProtocolError", f"a link that leaves the release: {target!r:.80}")
    os.symlink(target, place)


def copy_verified(origin: bytes, place: bytes, sha256: str) -> None:
    digest = hashlib.sha256()
    with open(origin, "rb") as reader, open(place, "wb") as writer:
        for data in _chunks(reader):
            digest.update(data)
            writer.write(data)
    if digest.hexdigest() != sha256:
        raise Refusal(
            "TransferFailed", f"{os.fsdecode(origin)} on the server is not what was sent", "remove that file and deploy again"
        )


def _chunks(reader: Any) -> Iterator[bytes]:
    while True:
        data = reader.read(1 << 20)
        if not data:
            return
        yield data


def _remove_leftovers(layout: Layout) -> None:
    """What a killed deploy left; only called under the lock."""
    for name in os.listdir(layout.releases):
        if name.startswith(".staging-"):
            shutil.rmtree(os.path.join(layout.releases, name), ignore_errors=True)


def _prune(layout: Layout) -> List[str]:
    """Remove old releases that no run was made from."""
    used = {current_release(layout)}
    try:
        for run in os.listdir(layout.runs):
            used.add(str((read_json(os.path.join(layout.runs, run, "run.json")) or {}).get("release")))
    except OSError:
        return []
    removed = []
    for tree, _ in _by_age(layout)[KEEP_RELEASES:]:
        if tree not in used:
            aside = os.path.join(layout.releases, f".staging-{secrets.token_hex(6)}")
            os.rename(layout.release(tree), aside)
            os.unlink(layout.manifest(tree))
            shutil.rmtree(aside, ignore_errors=True)
            removed.append(tree)
    return removed
