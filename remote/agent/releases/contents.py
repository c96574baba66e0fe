"""Contents by their hash: received over one connection or several, found where they lie already,
and laid out as trees."""

import contextlib
import glob
import hashlib
import os
import re
import stat
from typing import Any, Callable, Container, Dict, Iterable, List, Set, Tuple

from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import HASH, hash_file, list_names, place_in, random_name, remove_file
from remote.agent.shared import protocol
from remote.agent.shared.trees import SYMLINK, Entry

PART = ".part"
"""Behind the name of a content that has not arrived whole; the next connection goes on behind what
there is."""


def hashes(entries: List[Entry]) -> Set[str]:
    return {sha256 for _, _, _, sha256 in entries}


def known_contents(
    incoming: str, trees: Iterable[Tuple[str, List[Entry]]], entries: List[Entry]
) -> Dict[str, bytes]:
    """Where contents of `entries` already lie on this server, hash → path: in `incoming`, or in
    `trees` of (directory, manifest)."""
    found: Dict[str, bytes] = {}
    wanted = {sha256: size for _, _, size, sha256 in entries}
    for name in wanted.keys() & set(list_names(incoming)):
        place = place_in(incoming, name)
        if _is_file_of(place, wanted[name]):  # a power cut may have taken what was received
            found[name] = place
    for directory, manifest in trees:
        if len(found) == len(wanted):
            break
        for path, mode, size, sha256 in manifest:
            if sha256 in wanted and sha256 not in found and mode != SYMLINK:
                place = place_in(directory, path)
                if _is_file_of(place, size):
                    found[sha256] = place
    return found


def places_of(
    incoming: str, entries: List[Entry], there: Dict[str, bytes], problem: str
) -> Dict[str, bytes]:
    """Where each content lies now: where it was found before, or where it has been received. Raises
    Refusal where one lies nowhere though all were sent."""
    places = {**known_contents(incoming, (), entries), **there}
    if any(sha256 not in places for _, _, _, sha256 in entries):
        raise Refusal("TransferFailed", problem, "run the same command again")
    return places


def _is_file_of(path: bytes, size: int) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def partly_received(incoming: str, wanted: Iterable[str]) -> Dict[str, int]:
    """Of the wanted contents those whose beginning has arrived, with its length in bytes."""
    found = {}
    for sha256 in wanted:
        try:
            found[sha256] = os.stat(os.path.join(incoming, sha256 + PART)).st_size
        except OSError:
            continue
    return found


def receive(call: Call, incoming: str, entries: List[Entry], there: Container[str]) -> int:
    """Tell what is missing but for what is `there`, and store the contents that come, by hash. Each
    appears under its name only when its hash is right. Returns the bytes that came.

    Event: ready, missing (null: all), partial (hash → bytes that came before).
    A frame's pieces are [hash, length, whether it is the last one]; `from` tells behind how many
    bytes a content goes on. With `stored` the bytes came over another channel, as `content_piece`.
    """
    sizes, total = {sha256: size for _, _, size, sha256 in entries}, 0
    names = {sha256: path for path, _, _, sha256 in entries}
    missing = sorted(sha256 for sha256 in sizes if sha256 not in there)
    all_of_it = len(missing) == len(sizes)
    begun = partly_received(incoming, missing)
    call.event(ready=True, missing=None if all_of_it else missing, partial=begun)
    os.makedirs(incoming, mode=0o700, exist_ok=True)
    partial: Dict[str, _Partial] = {}
    try:
        for header, blob in call.blobs():
            pieces = header["pieces"]
            stored = (
                piece_of(incoming, pieces[0][0], header["stored"]) if "stored" in header else ""
            )
            data = _read(stored) if stored else _unpacked(header, blob)
            position = 0
            for sha256, length, last in pieces:
                if sha256 not in sizes:
                    raise Refusal("ProtocolError", "an upload that is not in the manifest")
                piece = data[position : position + length]
                position += length
                total += len(piece)
                if sha256 not in partial:
                    have = (header.get("from") or {}).get(sha256, 0)
                    partial[sha256] = _begin(os.path.join(incoming, sha256), sizes[sha256], have)
                partial[sha256].write(piece)
                if last:
                    partial.pop(sha256).finish(sha256, names[sha256])
            if stored:
                os.unlink(stored)
    finally:
        for leftover in partial.values():
            leftover.close()
    return total


@operation("content_piece")
def content_piece(call: Call, into: str, sha256: str, at: int, length: int) -> Dict[str, Any]:
    """Store a piece of a large content beside other channels, for `receive` to put in its place.
    Asks for the bytes only where the piece isn't there. `into`: data or releases."""
    layout = call.layout
    if not HASH.match(sha256) or not (at >= 0 and 0 < length <= protocol.PIECE):
        raise Refusal("ProtocolError", "a wrong piece of a file")
    incoming = layout.data_incoming if into == "data" else layout.incoming
    place = piece_of(incoming, sha256, at)
    if os.path.exists(place) and os.path.getsize(place) == length:
        return {}
    os.makedirs(incoming, mode=0o700, exist_ok=True)
    for left in glob.glob(glob.escape(place) + ".*"):  # a connection was cut
        os.unlink(left)
    aside = f"{place}.{random_name(4)}"
    call.event(ready=True)
    with open(aside, "wb") as file:
        for header, blob in call.blobs():
            file.write(_unpacked(header, blob))
    if os.path.getsize(aside) != length:
        os.unlink(aside)
        raise Refusal("ProtocolError", "a piece of another length than announced")
    os.replace(aside, place)
    return {}


def piece_of(incoming: str, sha256: str, at: int) -> str:
    return os.path.join(incoming, f"{sha256}@{int(at)}")


def forget(incoming: str, entries: List[Entry]) -> None:
    """What was received of these, which have their places now. That of another upload, which was
    cut off, is still to be gone on with."""
    done = hashes(entries)
    for name in list_names(incoming):
        if re.split("[.@]", name)[0] in done:
            remove_file(os.path.join(incoming, name))
    with contextlib.suppress(OSError):
        os.rmdir(incoming)


def _unpacked(header: Dict[str, Any], blob: bytes) -> bytes:
    length = sum(length for _, length, _ in header["pieces"])
    if length > protocol.MAX_BLOB:
        raise Refusal("ProtocolError", "an upload frame is too large")
    return protocol.unpack(blob, length + 1) if header.get("packed") else blob


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(protocol.PIECE)


def _begin(path: str, size: int, have: int) -> "_Partial":
    """A content from its beginning, or behind the first `have` bytes that had arrived before.

    Where somebody else's upload has finished it meanwhile, what comes is thrown away; the content
    is found where that put it.
    """
    try:
        return _Partial(path, size, have)
    except EOFError:
        return _Unneeded()


class _Partial:
    """A content on its way in. What has come stays when the connection is lost."""

    def __init__(self, path: str, size: int, have: int) -> None:
        self.path = path
        self.size = size
        self.digest = hashlib.sha256()
        self.length = 0
        self.temporary = path + PART
        try:
            self.file = open(self.temporary, "r+b" if have else "wb")
        except FileNotFoundError:
            raise EOFError from None
        while self.length < have:
            data = self.file.read(min(1 << 20, have - self.length))
            if not data:
                self.file.close()
                raise EOFError
            self.digest.update(data)
            self.length += len(data)
        self.file.truncate()

    def close(self) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.length += len(data)
        if self.length > self.size:
            self.drop()
            raise Refusal("ProtocolError", "more bytes than announced")
        self.digest.update(data)
        self.file.write(data)

    def finish(self, sha256: str, name: str) -> None:
        self.file.close()
        if self.digest.hexdigest() != sha256:
            self.drop()
            raise Refusal(
                "TransferFailed",
                f"{name!r:.120} changed while it was being sent",
                "run the same command again",
            )
        os.replace(self.temporary, self.path)

    def drop(self) -> None:
        self.file.close()
        remove_file(self.temporary)


class _Unneeded(_Partial):
    """Takes what comes and keeps nothing."""

    def __init__(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        pass

    def finish(self, sha256: str, name: str) -> None:
        pass

    def close(self) -> None:
        pass


def write_tree(
    target: str, entries: List[Entry], source: Callable[[str], Tuple[bytes, str]]
) -> None:
    """Write every entry below `target`. `source(hash)` gives the file that has it, and how it is to
    be taken: copy, link, share (a link without reading it again, for a file of the same mode that
    nobody has touched since it was verified), or take, for what was received.
    """
    base = os.fsencode(target)
    made = {base}
    for path, mode, _, sha256 in entries:
        place = place_in(base, path)
        directory = os.path.dirname(place)
        if directory not in made:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            made.add(directory)
        origin, how = source(sha256)
        if how == "share" and mode != SYMLINK and _shared(origin, place, mode):
            continue
        if os.path.islink(place) or (mode == SYMLINK and os.path.lexists(place)):
            os.unlink(place)  # what a run had replaced
        if mode == SYMLINK:
            with open(origin, "rb") as file:
                _link_inside(base, place, file.read())
            continue
        if how == "take":
            _take(origin, place)
        elif how == "link":
            link_verified(origin, place, sha256)
        else:
            copy_verified(origin, place, sha256)
        os.chmod(place, mode)


def _take(origin: bytes, place: bytes) -> None:
    """It also stays where it was received, until `forget`: a tree that is cut off while it is laid
    out takes nothing with it. Where a file system has no such links it does."""
    try:
        os.link(origin, place)
    except OSError:
        os.rename(origin, place)


def _shared(origin: bytes, place: bytes, mode: int) -> bool:
    try:
        if stat.S_IMODE(os.stat(origin).st_mode) != mode:
            return False
        os.link(origin, place)
    except OSError:
        return False
    return True


def _link_inside(base: bytes, place: bytes, target: bytes) -> None:
    reached = os.path.normpath(os.path.join(os.path.dirname(place), target))
    if os.path.isabs(target) or not (reached == base or reached.startswith(base + b"/")):
        raise Refusal("ProtocolError", f"a link that leaves the release: {target!r:.80}")
    os.symlink(target, place)


def copy_verified(origin: bytes, place: bytes, sha256: str) -> None:
    digest = hashlib.sha256()
    with open(origin, "rb") as reader, open(place, "wb") as writer:
        for data in iter(lambda: reader.read(1 << 20), b""):
            digest.update(data)
            writer.write(data)
    _require(origin, digest.hexdigest() == sha256)


def link_verified(origin: bytes, place: bytes, sha256: str) -> None:
    """The same file under another name: for what nobody changes. A file system without such links
    gets a copy."""
    _require(origin, hash_file(origin) == sha256)
    try:
        os.link(origin, place)
    except OSError:
        copy_verified(origin, place, sha256)


def _require(origin: bytes, right: bool) -> None:
    if not right:
        text = f"{os.fsdecode(origin)} on the server is not what was sent"
        raise Refusal("TransferFailed", text, "remove that file, then the same command again")
