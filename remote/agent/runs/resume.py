"""Going on with a run that has ended: as its next attempt here, or with what a laptop has kept of
it, on another host."""

import glob
import os
import shutil
import time
from typing import Any, Dict, List, Optional

from remote.agent.releases.contents import receive, write_tree
from remote.agent.releases.releases import assemble, checked_manifest, known, require_space
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import Layout, write_json
from remote.agent.root.roots import locked, prepare_root
from remote.agent.runs.attempts import MOVED, past_attempts, queued_state
from remote.agent.runs.launch import launch, new_run, refuse_elsewhere
from remote.agent.runs.new_code import take_new_code
from remote.agent.runs.outputs import STEP
from remote.agent.runs.planned_shutdown import plan_shutdown, require_possible
from remote.agent.runs.private import keep_private
from remote.agent.runs.queue import one_launch_at_a_time, require_free_gpus
from remote.agent.runs.records import find_run
from remote.agent.shared.states import FINAL
from remote.agent.shared.trees import tree_hash

SOURCE = "source/"
OWN = ("run.json", "state.json", "progress.json")
"""Written anew where a run moves to another host."""


@operation("run_resume")
def run_resume(
    call: Call,
    run: str,
    asked: Dict[str, Any],
    notify: str = "",
    env: Optional[Dict[str, str]] = None,
    shutdown: Optional[Dict[str, Any]] = None,
) -> Dict[str, Any]:
    """Launch the next attempt of a run that has ended. `asked`: what differs from the attempt
    before. One that runs is left alone."""
    layout = call.layout
    prepare_root(call)
    if shutdown:
        require_possible(layout, str(shutdown.get("command") or ""))
    with one_launch_at_a_time(layout):
        found = find_run(layout, run)
        directory, state = found["path"], found["detail"]
        if found["state"] not in FINAL:
            refuse_elsewhere(found, "ask that host")
            return {
                "run": found["run"],
                "again": True,
                "launched": str(state.get("launched") or "already"),
                "note": None,
            }
        if found["state"] == "finished":
            raise Refusal(
                "UsageError", f"{found['run']} has finished", "train again without --resume"
            )
        if found["asked"].get("finish") == "summary" and not glob.glob(
            os.path.join(glob.escape(directory), "checkpoints", "*.ckpt")
        ):
            raise Refusal(
                "NotFound",
                f"{found['run']} has saved no checkpoint to go on from",
                "train again without --resume",
            )
        attempts = begin_attempt(layout, found, asked)
        keep_private(directory, notify, env or {})
    launched = launch(layout, directory)
    if shutdown:
        plan_shutdown(layout, shutdown)
    attempt = len(attempts) + 1
    return {"run": found["run"], "again": False, "attempt": attempt, **launched._asdict()}


def begin_attempt(layout: Layout, found: Dict[str, Any], asked: Dict[str, Any]) -> List[Any]:
    """Write down the next attempt of a run that has ended; `asked`: what differs. Returns the
    attempts before it."""
    require_free_gpus(layout, asked)
    directory, attempts = found["path"], past_attempts(found["detail"])
    before = found["asked"].get("release")
    if asked.get("release") not in (None, before):
        take_new_code(layout, directory, str(before), asked["release"], len(attempts))
        asked["former_releases"] = [*found["asked"].get("former_releases", ()), before]
    for name in ("stop.json", "progress.json", STEP):
        if os.path.exists(os.path.join(directory, name)):
            os.unlink(os.path.join(directory, name))
    write_json(os.path.join(directory, "run.json"), dict(found["asked"], **asked))
    write_json(os.path.join(directory, "state.json"), queued_state(attempts=attempts))
    return attempts


@operation("run_import")
def run_import(
    call: Call,
    run: str,
    tree: str,
    manifest: List[Any],
    asked: Dict[str, Any],
    state: Dict[str, Any],
    who: str,
) -> Dict[str, Any]:
    """Receive a run as a laptop has fetched it, source/ included. It appears whole, as one that has
    stopped."""
    layout = call.layout
    entries = checked_manifest(tree, manifest)
    source = [
        (path[len(SOURCE) :], mode, size, sha256)
        for path, mode, size, sha256 in entries
        if path.startswith(SOURCE)
    ]
    rest = [entry for entry in entries if not entry[0].startswith(SOURCE) and entry[0] not in OWN]
    prepare_root(call)
    with locked(call, layout.lock, who):
        if os.path.isdir(layout.run(run)):
            return {"run": run, "exists": True}
        require_space(layout, entries)
        call.event(ready=True)
        receive(call, layout.incoming, {sha256: size for _, _, size, sha256 in entries})
        release = tree_hash(source)
        if not os.path.isdir(layout.release(release)):
            assemble(layout, release, source, str(asked.get("origin") or ""))
        # Looked up afterwards: assembling has moved what it used.
        places = known(layout, {sha256 for _, _, _, sha256 in rest})
        lost = [path for path, _, _, sha256 in rest if sha256 not in places]
        if lost:
            raise Refusal(
                "TransferFailed", f"{lost[0]} has not arrived", "run the same command again"
            )
        moved = {
            "state": "stopped",
            "cause": MOVED,
            "reason": f"moved here from {state.get('host')}",
            "ended": time.time(),
        }
        with new_run(layout, run, dict(asked, release=release)) as place:
            write_tree(place, rest, lambda sha256: (places[sha256], "copy"))
            write_json(
                os.path.join(place, "state.json"),
                {**queued_state(attempts=past_attempts(state)), **moved},
            )
        shutil.rmtree(layout.incoming, ignore_errors=True)
    return {"run": run, "exists": False}
