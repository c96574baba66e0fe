"""Going on with a run that has ended: as its next attempt here, or with what a laptop has kept of
it, on another host."""

import os
import time
from typing import Any, Dict, List, NamedTuple, Tuple

from remote.agent.releases.contents import forget, receive, write_tree
from remote.agent.releases.releases import assemble, checked_manifest, known, require_space
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import Layout, place_in, remove_file
from remote.agent.root.roots import locked, prepare_root
from remote.agent.root.run_json import save
from remote.agent.run_files.attempts import MOVED, past_attempts, queued_state, trainer_checkpoints
from remote.agent.run_files.outputs import STEP
from remote.agent.run_files.private import keep_private
from remote.agent.run_files.records import Found, find_run, require_state
from remote.agent.runs.launch import Start, launch, launched_before, new_run, refuse_elsewhere
from remote.agent.runs.new_code import take_new_code
from remote.agent.runs.planned_shutdown import plan_shutdown, require_possible
from remote.agent.runs.queue import one_launch_at_a_time, require_free_gpus
from remote.agent.shared.reading import differing, read
from remote.agent.shared.run_records import Asked, Attempt, RunDetail
from remote.agent.shared.states import FINAL, Outcome
from remote.agent.shared.trees import Entry, tree_hash

SOURCE = "source/"
OWN = ("run.json", "state.json", "progress.json")
"""Written anew where a run moves to another host."""


@operation("run_resume", takes=Start)
def run_resume(call: Call, start: Start) -> Dict[str, Any]:
    """Launch the next attempt of a run that has ended. One that runs is left alone."""
    layout = call.layout
    prepare_root(call)
    require_possible(layout, start.shutdown)
    with one_launch_at_a_time(layout):
        found = find_run(layout, start.run)
        require_state(found)
        if found.state not in FINAL:
            refuse_elsewhere(found)
            return {"again": True, **launched_before(found.detail)._asdict()}
        require_something_to_do(found)
        asked = read(Asked, {**differing(found.asked), **start.asked})
        attempts = begin_attempt(layout, found, asked)
        keep_private(found.path, start.notify, start.env)
    launched = launch(layout, found.path)
    plan_shutdown(layout, start.shutdown)
    return {"again": False, "attempt": len(attempts) + 1, **launched._asdict()}


def require_something_to_do(found: Found) -> None:
    """Raises Refusal for a run that has finished, or has nothing to go on from."""
    remedy = "train again without --resume"
    if found.state == "finished":
        raise Refusal("UsageError", f"{found.run} has finished", remedy)
    if found.asked.is_trainer and not trainer_checkpoints(found.path):
        text = f"{found.run} has saved no checkpoint to go on from"
        raise Refusal("NotFound", text, remedy)


def begin_attempt(layout: Layout, found: Found, asked: Asked) -> Tuple[Attempt, ...]:
    """Write down the next attempt of a run that has ended. Returns the attempts before it."""
    require_free_gpus(layout, asked)
    directory, attempts = found.path, past_attempts(found.detail)
    before, former = found.asked.release, found.asked.former_releases
    if asked.release != before:
        take_new_code(layout, directory, before, asked.release, len(attempts))
        former = (*former, before)
    for name in ("stop.json", "progress.json", STEP):
        remove_file(os.path.join(directory, name))
    save(asked._replace(former_releases=former), directory)
    save(queued_state(attempts), directory)
    return attempts


class Moving(NamedTuple):
    """A run that comes from another host, as a laptop has fetched it, source/ included."""

    run: str
    tree: str
    manifest: List[Any]
    # Its run.json and state.json.
    asked: Dict[str, Any]
    state: Dict[str, Any]
    who: str
    # When a file was changed: what was written last is gone on from.
    times: Dict[str, float]


@operation("run_import", takes=Moving)
def run_import(call: Call, moving: Moving) -> Dict[str, Any]:
    """Receive it. It appears whole, as one that has stopped."""
    layout = call.layout
    entries = checked_manifest(moving.tree, moving.manifest)
    prepare_root(call)
    with locked(call, layout.lock, moving.who):
        if os.path.isdir(layout.run(moving.run)):
            return {}
        require_space(layout, entries)
        receive(call, layout.incoming, entries, known(layout, entries))
        lay_out(layout, moving, entries)
        forget(layout.incoming, entries)
    return {}


def lay_out(layout: Layout, moving: Moving, entries: List[Entry]) -> None:
    """Its code as a release, and the rest, which has arrived, as the run."""
    code = [(entry[0][len(SOURCE) :], *entry[1:]) for entry in entries if is_code(entry)]
    code.sort(key=lambda entry: entry[0].encode("utf-8", "surrogateescape"))  # as releases are
    rest = [entry for entry in entries if not is_code(entry) and entry[0] not in OWN]
    release, asked = tree_hash(code), read(Asked, moving.asked)
    if not os.path.isdir(layout.release(release)):
        assemble(layout, release, code, known(layout, code), asked.origin)
    # Looked up afterwards: assembling may have moved what it used.
    places = known(layout, rest)
    lost = [path for path, _, _, sha256 in rest if sha256 not in places]
    if lost:
        raise Refusal("TransferFailed", f"{lost[0]} has not arrived", "run the same command again")
    before = read(RunDetail, moving.state)
    end = Outcome("stopped", f"moved here from {before.host}", MOVED)
    state = queued_state(past_attempts(before)).ended_as(end, time.time())
    with new_run(layout, moving.run, asked._replace(release=release)) as place:
        write_tree(place, rest, lambda sha256: (places[sha256], "copy"))
        for path in moving.times.keys() & {entry[0] for entry in rest}:
            os.utime(place_in(place, path), (moving.times[path],) * 2, follow_symlinks=False)
        save(state, place)


def is_code(entry: Entry) -> bool:
    return entry[0].startswith(SOURCE)
