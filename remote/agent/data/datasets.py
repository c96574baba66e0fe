"""Data on the server: sent once, kept by their content, shared by all runs. `data/<name>` leads
to them."""

import contextlib
import os
import re
import stat
from typing import Any, Container, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from remote.agent.releases.contents import (
    forget,
    hashes,
    known_contents,
    partly_received,
    places_of,
    receive,
    write_tree,
)
from remote.agent.releases.releases import checked_manifest, stored_entries
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.disk import naming_disk, require_room
from remote.agent.root.paths import (
    HASH,
    Layout,
    hash_file,
    list_names,
    new_directory,
    place_in,
    remove_leftovers,
    write_json,
    write_link,
)
from remote.agent.root.roots import locked, prepare_root
from remote.agent.shared.trees import Entry
from remote.agent.shared.weights import find_weights, hub_of

NAME = re.compile(r"[^\s/\\.\x00-\x1f\x7f-\x9f-][^/\\\x00-\x1f\x7f-\x9f]{0,99}\Z")
ARCHIVE, BATCHES, DOWNLOADED = "cifar-10-python.tar.gz", "cifar-10-batches-py", "cifar10"
"""CIFAR-10 as it may lie in data/: the archive, unpacked, and the folder that a training downloads
it into."""
REACH_S = 8.0
SPARE_BYTES = 64 << 20


def describe_datasets(layout: Layout) -> Dict[str, Any]:
    """`names` in data/, and `cifar10`: the path of CIFAR-10 among them, None where it isn't."""
    names = sorted(name for name in list_names(layout.data) if not name.startswith("."))
    places = (
        os.path.join(layout.data, name)
        for name in (ARCHIVE, BATCHES, os.path.join(DOWNLOADED, ARCHIVE))
    )
    return {
        "names": names,
        "cifar10": next(
            (os.path.realpath(place) for place in places if os.path.exists(place)), None
        ),
    }


def find_data(layout: Layout, data: str) -> Optional[str]:
    """A name in the project's data/, an absolute path, or one below the home; None if there is
    nothing."""
    home = os.path.expanduser("~")
    for place in (os.path.join(layout.data, data), os.path.join(home, os.path.expanduser(data))):
        if os.path.exists(place):
            return os.path.realpath(place)
    return None


def sets_of(layout: Layout, wanted: Set[str]) -> Iterator[Tuple[str, List[Entry]]]:
    """Every set: its directory, and what lies there of the wanted contents as it was sent."""
    for tree in filter(HASH.match, list_names(layout.sets)):
        entries = [
            entry for entry in stored_entries(layout.set_manifest(tree)) if entry[3] in wanted
        ]
        altered = find_altered(layout, tree, entries)
        yield layout.set(tree), [entry for entry in entries if entry not in altered]


def find_contents(layout: Layout, entries: List[Entry]) -> Dict[str, bytes]:
    return known_contents(layout.data_incoming, sets_of(layout, hashes(entries)), entries)


def find_altered(layout: Layout, tree: str, entries: List[Entry]) -> Set[Entry]:
    """Those of a set that are gone, or are not what was sent. What nobody has touched since the set
    was whole is not read again: a file's status changes with every write, and every new name."""
    try:
        whole_ns = os.stat(layout.set_manifest(tree)).st_mtime_ns
    except OSError:
        return set(entries)

    def is_altered(entry: Entry) -> bool:
        place = place_in(layout.set(tree), entry[0])
        try:
            status = os.lstat(place)
            if not stat.S_ISREG(status.st_mode) or status.st_size != entry[2]:
                return True
            return status.st_ctime_ns > whole_ns and hash_file(place) != entry[3]
        except OSError:
            return True

    return {entry for entry in entries if is_altered(entry)}


def checked_name(layout: Layout, name: str) -> str:
    """Raises Refusal for what can't be a name, or is one that somebody else gave."""
    if not NAME.match(name):
        raise Refusal(
            "UsageError", f"{name!r:.120} can't be a name in data/", "choose another: --name NAME"
        )
    place = os.path.join(layout.data, name)
    if os.path.lexists(place) and not os.path.islink(place):
        raise Refusal(
            "UsageError",
            f"{place} was not made by upload-data",
            "choose another: --name NAME, or use it as it is: train --data",
        )
    return name


def leads_to(link: str, directory: str) -> bool:
    return (os.path.realpath(link) + os.sep).startswith(os.path.realpath(directory) + os.sep)


class Sent(NamedTuple):
    """`single`: it is one file, and the name leads to that."""

    tree: str
    manifest: List[Any]
    name: str
    single: bool
    who: str


@operation("data_put", takes=Sent)
def data_put(call: Call, sent: Sent) -> Dict[str, Any]:
    """Receive what is missing or was altered, lay it out, and give it its name. `received`: bytes;
    null where the name led to all of it already. `before`: the files and bytes of another set that
    the name led to."""
    layout, tree = call.layout, sent.tree
    entries = checked_manifest(tree, sent.manifest)
    prepare_root(call)
    link = os.path.join(layout.data, checked_name(layout, sent.name))
    if leads_to(link, layout.set(tree)) and not find_altered(layout, tree, entries):
        os.utime(layout.set_manifest(tree))
        return {"received": None}
    received = 0
    with locked(call, layout.data_lock, sent.who), naming_disk(layout.sets):
        altered = find_altered(layout, tree, entries)
        if altered:
            there = find_contents(layout, entries)
            require_space(layout, entries, there)
            received = receive(call, layout.data_incoming, entries, there)
            lay_out(layout, tree, entries, altered, there)
            forget(layout.data_incoming, entries)
        os.utime(layout.set_manifest(tree))  # what was linked until now is what was sent
        before = describe_set(layout, link, tree)
        target = os.path.join(
            os.path.basename(layout.sets), tree, *([entries[0][0]] if sent.single else [])
        )
        write_link(link, target)
    return {"received": received, "before": before}


def describe_set(layout: Layout, link: str, but: str) -> Optional[List[int]]:
    """The files and bytes of the set that a name leads to; None where it leads to none, or to
    `but`."""
    for tree in filter(HASH.match, list_names(layout.sets)):
        if tree != but and leads_to(link, layout.set(tree)):
            entries = stored_entries(layout.set_manifest(tree))
            return [len(entries), sum(size for _, _, size, _ in entries)]
    return None


def require_space(layout: Layout, entries: List[Entry], there: Container[str]) -> None:
    missing = {sha256: size for _, _, size, sha256 in entries if sha256 not in there}
    begun = partly_received(layout.data_incoming, missing)
    need = (
        sum(max(size, 4096) - begun.get(sha256, 0) for sha256, size in missing.items())
        + SPARE_BYTES
    )
    require_room(layout.data, need, len(entries) * 2, "the data needs")


def lay_out(
    layout: Layout, tree: str, entries: List[Entry], altered: Set[Entry], there: Dict[str, bytes]
) -> None:
    """The set appears whole; of one that is here what was altered is put in its place. What another
    set has already takes no room twice, so nobody may write into it."""
    problem = "the data is not complete on the server"
    wanted = [entry for entry in entries if entry in altered]
    places = places_of(layout.data_incoming, wanted, there, problem)
    incoming = os.fsencode(layout.data_incoming)
    os.makedirs(layout.sets, mode=0o700, exist_ok=True)
    remove_leftovers(layout.sets)
    is_new = not os.path.isdir(layout.set(tree))
    with new_directory(layout.set(tree)) if is_new else mended(layout, tree, wanted) as place:
        # The first of each content, where a second one finds it.
        first = {sha256: place_in(place, path) for path, _, _, sha256 in reversed(wanted)}

        def source(sha256: str) -> Tuple[bytes, str]:
            found = places[sha256]
            if not found.startswith(incoming):
                return found, "link"
            places[sha256] = first[sha256]
            return found, "take"

        read_only = [(path, mode & ~0o222, size, sha256) for path, mode, size, sha256 in wanted]
        write_tree(place, read_only, source)
        write_json(layout.set_manifest(tree), {"entries": entries})


@contextlib.contextmanager
def mended(layout: Layout, tree: str, wanted: List[Entry]) -> Iterator[str]:
    """The set as it is here, without those that are to be placed."""
    for path, *_ in wanted:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place_in(layout.set(tree), path))
    yield layout.set(tree)


@operation("reach")
def reach(call: Call, url: str) -> Dict[str, Any]:
    """Whether a training here could download from an address, by the proxies that it would use."""
    return try_address(os.environ.get("CIFAR10_URL", url))


@operation("pretrained")
def pretrained(call: Call, network: str) -> Dict[str, Any]:
    """As `reach`, for a library's weights: those in its cache need no download."""
    if find_weights(network):
        return {"reached": True, "problem": None}
    return try_address(hub_of(network))


def try_address(url: str) -> Dict[str, Any]:
    import urllib.error
    import urllib.request  # takes as long to load as the rest of the agent's own modules

    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_S):
            return {"reached": True, "problem": None}
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        problem = (
            " ".join(str(getattr(reason, "strerror", None) or reason).split())
            or type(error).__name__
        )
        # Some servers don't speak HEAD, but they are there.
        there = isinstance(error, urllib.error.HTTPError) and error.code == 405
        return {"reached": there, "problem": problem[:200]}
