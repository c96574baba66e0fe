"""What nothing needs any more: found, told with its reason, and removed. A run that was not fetched
stays unless told otherwise."""

import contextlib
import os
import shutil
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from remote.agent.data.datasets import leads_to
from remote.agent.environments.environments import describe_environment
from remote.agent.environments.resolution import ASIDE as RESOLVING
from remote.agent.machine.others import own_processes, roots_of
from remote.agent.releases.releases import current_release
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import ASIDE, HASH, RUN_ID, Layout, list_names, random_name
from remote.agent.root.roots import locked, locked_if_free, prepare_root
from remote.agent.run_files.fetched import why_not_fetched
from remote.agent.run_files.records import Found, describe_run, find_run, list_runs, read_mark
from remote.agent.runs.queue import one_launch_at_a_time
from remote.agent.shared.states import FINAL, LIVE

GONE = ".gone-"
LEFTOVER_S = 3600.0
"""A launch makes its directory aside in seconds, and requirements are resolved in minutes; what is
older was left by one that was killed."""
UPLOAD_S = 24 * 3600.0


class Wanted(NamedTuple):
    who: str
    # The key of the one that the next deploy would keep.
    environment: str = ""
    # Runs that have ended and are to go, these alone, although the laptop has not all of them.
    named: Sequence[str] = ()
    # Those that it has, each with the hash over what it has compared, as `fetch_manifest` told it.
    here: Mapping[str, str] = {}
    # Else they are listed alone.
    remove: bool = False


@operation("clean", takes=Wanted)
def clean(call: Call, wanted: Wanted) -> Dict[str, Any]:
    """List, or remove, what nothing needs.

    Answers `items` (kind, name, bytes, why) and `kept` (the runs that stay, with why).
    """
    layout = call.layout
    if not os.path.isdir(layout.root):
        return {"items": [], "kept": [], "removed": False}
    prepare_root(call)
    # Images that are being sent just now are left alone, with all that lies beside them.
    with locked(call, layout.lock, wanted.who), locked_if_free(layout.data_lock) as has_data:
        unwanted = {find_run(layout, name).run for name in wanted.named}
        items, kept = find_unneeded(layout, wanted.environment, unwanted, wanted.here)
        items += find_unneeded_data(layout) if has_data and not unwanted else []
        if wanted.remove:
            for item in items:
                _remove(layout, item)
    told = [{key: item[key] for key in ("kind", "name", "bytes", "why")} for item in items]
    return {"items": told, "kept": kept, "removed": wanted.remove}


def find_unneeded(
    layout: Layout, environment: str, unwanted: Set[str], here: Mapping[str, str]
) -> Any:
    """The items to remove, each with its `paths`; and the runs that stay. Where runs are named, of
    these alone."""
    items: List[Dict[str, Any]] = []
    kept: List[Dict[str, Any]] = []
    releases, environments = {current_release(layout)}, {environment}
    for name in sorted(unwanted) or _names(layout.runs, RUN_ID):
        run = describe_run(layout, name)
        why = why_to_keep(layout, run, here)
        if why is None or (name in unwanted and not goes_on(run)):
            reason = why or "fetched completely"
            reason = f"named by --run ({reason})" if unwanted else reason
            item = _item("run", name, [run.path], f"{run.state}, {reason}")
            items.append(dict(item, here=here, unwanted=name in unwanted))
            continue
        kept.append({"run": name, "state": run.state, "why": why})
        releases.add(run.asked.release)
        if run.state != "finished":
            environments.add(run.asked.environment_key)
    if unwanted:
        return items, kept
    for tree in _names(layout.releases, HASH):
        if tree not in releases:
            paths = [layout.release(tree), layout.manifest(tree)]
            why = "no run was made from it, and it is not current"
            items.append(_item("release", tree, paths, why))
    for key in _names(layout.environments, HASH):
        found = describe_environment(layout, key)
        if key not in environments and not (found and found.building):
            why = "no run that stays can go on in it, and the next deploy does not use it"
            items.append(_item("environment", key, [layout.environment(key)], why))
    return items + _leftovers(layout), kept


def find_unneeded_data(layout: Layout) -> List[Dict[str, Any]]:
    """Sets to which no name in data/ leads any more, and what was left of an upload that nobody has
    gone on with for a day."""
    names = [os.path.join(layout.data, name) for name in list_names(layout.data)]
    # A command of one's own is told by a variable, our trainer by its options.
    live = " ".join(
        f"{run.asked.argv} {run.asked.data_path}"
        for run in list_runs(layout)
        if run.state not in FINAL
    )
    items = []
    for tree in _names(layout.sets, HASH):
        place = os.path.realpath(layout.set(tree))
        if place not in live and not any(leads_to(name, place) for name in names):
            paths = [layout.set(tree), layout.set_manifest(tree)]
            items.append(_item("images", tree, paths, "no name in data/ leads to them any more"))
    return [*items, *_left_in(layout.sets, (ASIDE, GONE)), *_abandoned(layout.data_incoming)]


def why_to_keep(
    layout: Layout, run: Found, here: Mapping[str, str], directory: str = ""
) -> Optional[str]:
    """None where nothing needs the run any more: the laptop that asks has all of it."""
    if goes_on(run):
        return "it has not ended"
    if run.state not in FINAL:
        return str(run.detail.reason)
    why = why_not_fetched(layout, run, directory=directory)
    mark = read_mark(directory or run.path, run.detail)
    if why is None and here.get(run.run) != mark.get("seen"):
        return f"fetched by {mark.get('who')}, not here"
    return why


def goes_on(run: Found) -> bool:
    """Of one whose record can't be read its supervisor tells that it does."""
    if run.state == "unknown":
        return run.path in roots_of(own_processes(), b"supervise")
    return run.state in LIVE


def _leftovers(layout: Layout) -> List[Dict[str, Any]]:
    """What killed deploys, launches and removals left aside; under the lock no deploy is at
    work."""
    return [
        *_left_in(layout.releases, (ASIDE, GONE)),
        *_abandoned(layout.incoming),
        *_left_in(layout.runs, (GONE,)),
        *_left_in(layout.runs, (".new-",), LEFTOVER_S),
        *_left_in(layout.environments, (GONE,)),
        *_left_in(layout.root, (RESOLVING,), LEFTOVER_S),
    ]


def _left_in(
    directory: str, prefixes: Tuple[str, ...], older_s: float = 0.0
) -> List[Dict[str, Any]]:
    why, latest = "left by something that was cut off", time.time() - older_s
    places = [
        os.path.join(directory, name) for name in list_names(directory) if name.startswith(prefixes)
    ]
    return [
        _item("leftover", os.path.basename(place), [place], why)
        for place in places
        if _changed(place) <= latest
    ]


def _abandoned(incoming: str) -> List[Dict[str, Any]]:
    """What has arrived of uploads that nobody has gone on with for long."""
    parts = [os.path.join(incoming, name) for name in list_names(incoming)]
    if not parts or time.time() - max(map(_changed, parts)) <= UPLOAD_S:
        return []
    why = "of an upload that was cut off more than a day ago"
    return [_item("leftover", os.path.basename(incoming), [incoming], why)]


def _names(directory: str, pattern: Any) -> List[str]:
    return sorted(
        name
        for name in list_names(directory)
        if pattern.match(name) and os.path.isdir(os.path.join(directory, name))
    )


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return time.time()


def _item(kind: str, name: str, paths: List[str], why: str) -> Dict[str, Any]:
    return {
        "kind": kind,
        "name": name,
        "paths": paths,
        "why": why,
        "bytes": sum(map(_bytes_below, paths)),
    }


def _bytes_below(path: str) -> int:
    """Bytes on the disk of all files below, links not followed."""
    if not os.path.isdir(path) or os.path.islink(path):
        return _blocks(path)
    return sum(
        _blocks(os.path.join(folder, name)) for folder, _, files in os.walk(path) for name in files
    )


def _blocks(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0


def _remove(layout: Layout, item: Dict[str, Any]) -> None:
    """First out of sight by one rename, so that nobody ever sees half of it; a run while none is
    launched, for it could be this one that goes on."""
    is_run = item["kind"] == "run"
    with one_launch_at_a_time(layout) if is_run else contextlib.nullcontext():
        run = describe_run(layout, item["name"]) if is_run else None
        if run is not None and goes_on(run):
            raise Refusal("RunFailed", f"{item['name']} runs again", "nothing of it was removed")
        gone = [_set_aside(layout, item, run, path) for path in item["paths"]]
    for aside in filter(None, gone):
        if os.path.isdir(aside) and not os.path.islink(aside):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.unlink(aside)


def _set_aside(
    layout: Layout, item: Dict[str, Any], run: Optional[Found], path: str
) -> Optional[str]:
    """Where it is then; None where there is nothing. Raises Refusal for a run that has changed."""
    if not os.path.lexists(path):
        return None
    aside = os.path.join(os.path.dirname(path), GONE + random_name(6))
    os.rename(path, aside)
    why = None
    if run is not None and not item["unwanted"]:
        why = why_to_keep(layout, run, item["here"], aside)
    if why is not None:
        os.rename(aside, path)
        remedy = "nothing of it was removed; fetch it again"
        raise Refusal("RunFailed", f"{item['name']}: {why}", remedy)
    return aside
