"""The runs as they are told, those looked after that Slurm may not have yet."""

import time
from typing import Any, Dict, Optional

from remote.agent.launchers.slurm import job_of
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import Layout
from remote.agent.root.run_json import load, save
from remote.agent.run_files.records import Found, describe_run, find_run, list_runs
from remote.agent.runs.launch import launch
from remote.agent.runs.planned_shutdown import describe_plan, look_after_plan
from remote.agent.shared.run_records import RunDetail
from remote.agent.shared.states import Outcome

LATER = "waits to be submitted"


@operation("runs")
def runs(call: Call, run: Optional[str] = None) -> Dict[str, Any]:
    layout = call.layout
    found = [look_after(layout, known) for known in list_runs(layout)]
    look_after_plan(layout)
    shutdown = describe_plan(layout, found)
    if run is not None:
        found = [find_run(layout, run, found)]
    return {"runs": [one.tell() for one in found], "shutdown": shutdown}


def look_after(layout: Layout, known: Found) -> Found:
    """Submit an attempt that Slurm does not have: its submission was cut off, or its node might not
    submit the next one."""
    directory, state = known.path, known.detail
    if not known.asked.by_slurm or known.state != "queued":
        return known
    if state.supervisor_pid or job_of(directory, state.token):
        return known
    try:
        launch(layout, directory)
    except Refusal as refusal:
        if refusal.details.get("limited"):
            waiting = f"{LATER}: {refusal.message}"
            return known._replace(detail=state._replace(waiting=waiting))
        ended = Outcome("failed", refusal.message, "not started")
        save(load(RunDetail, directory).ended_as(ended, time.time()), directory)
    return describe_run(layout, known.run)


def submit_waiting(layout: Layout) -> None:
    """Those that the site did not take before, the oldest first, until it refuses again."""
    for known in reversed(list_runs(layout)):
        if look_after(layout, known).detail.waiting.startswith(LATER):
            return
