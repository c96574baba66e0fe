"""What the files of a run say, checked against what can be seen now: a record of `running` whose
processes are gone is corrected."""

import os
import time
from typing import Any, Dict, List, Optional

from remote.agent.calls import Call, Refusal, operation
from remote.agent.machine.processes import boot_id, is_same, start_time
from remote.agent.root.paths import RUN_ID, Layout, read_json, resolve_root
from remote.agent.runs.terminal import read_shown

ATTEMPT = ("state", "reason", "cause", "exit_code", "host", "started", "ended")
"""What is kept of an attempt that has ended."""


FETCHED = ".fetched.json"
"""In a run's directory: a laptop has all of it, as it was when it had ended."""


def list_runs(layout: Layout) -> List[Dict[str, Any]]:
    """Newest first, each as `describe_run` tells it."""
    try:
        names = [name for name in os.listdir(layout.runs) if RUN_ID.match(name)]
    except OSError:
        return []
    runs = [describe_run(layout, name) for name in names]
    return sorted(
        runs, key=lambda run: (_number(run["detail"].get("since")), run["run"]), reverse=True
    )


def _number(value: object) -> float:
    """`since` is this server's own clock: laptops' clocks may be years apart, and would choose a
    wrong `latest`."""
    return float(value) if isinstance(value, (int, float)) else 0.0


def describe_run(layout: Layout, run: str) -> Dict[str, Any]:
    """What the files say, checked: a record of `running` whose processes are gone is corrected."""
    directory = layout.run(run)
    asked = read_json(os.path.join(directory, "run.json")) or {}
    state = checked_state(directory, read_json(os.path.join(directory, "state.json")) or {}, asked)
    state["fetched"] = read_fetched(directory, state)
    state["checkpointed"] = newest_checkpoint(directory)
    if state.get("state") == "running" and not state.get("elsewhere"):
        shown = read_shown(directory)
        state.update(line=shown.get("line"), asking=shown.get("asking") is True)
    return {
        "run": run,
        "state": state.get("state"),
        "reason": state.get("reason"),
        "host": state.get("host"),
        "release": asked.get("release"),
        "gpus": asked.get("gpus"),
        "asked": asked,
        "detail": state,
        "progress": read_json(os.path.join(directory, "progress.json")) or {},
        "summary": read_json(os.path.join(directory, "summary.json")) or {},
        "path": directory,
    }


def newest_checkpoint(directory: str) -> Optional[float]:
    """When the newest of checkpoints/*.ckpt was written; None without one."""
    try:
        with os.scandir(os.path.join(directory, "checkpoints")) as scan:
            return max(
                (entry.stat().st_mtime for entry in scan if entry.name.endswith(".ckpt")),
                default=None,
            )
    except OSError:
        return None


def read_mark(directory: str, state: Dict[str, Any]) -> Dict[str, Any]:
    """What a laptop has of this run since it ended; empty if it was not fetched since."""
    mark = read_json(os.path.join(directory, FETCHED)) or {}
    return (
        mark
        if isinstance(mark.get("time"), (int, float)) and mark.get("ended") == state.get("ended")
        else {}
    )


def read_fetched(directory: str, state: Dict[str, Any]) -> Optional[float]:
    """When this run was fetched completely after its end; None if it was not, or if remote.results
    left something of it there."""
    mark = read_mark(directory, state)
    return float(mark["time"]) if mark and not mark.get("narrowed") else None


def checked_state(directory: str, state: Dict[str, Any], asked: Dict[str, Any]) -> Dict[str, Any]:
    """Correct a recorded state by what can be seen now, on the host that recorded it; elsewhere it
    is told as recorded."""
    if state.get("state") not in ("queued", "running"):
        return state
    if state.get("host") != os.uname().nodename:
        # Homes may be shared: only the host that runs it can tell whether it lives.
        return dict(
            state,
            elsewhere=True,
            reason=f"as recorded by {state.get('host')}, which alone can tell whether it lives",
        )
    ended = dict(state, state="failed", corrected=True)
    if state.get("boot_id") != boot_id():
        return dict(ended, reason="the server was rebooted", cause="rebooted")
    if state.get("state") == "queued" and not state.get("supervisor_pid"):
        if time.time() - float(state.get("since") or 0) < 60:
            return state
        return dict(
            ended, reason="it was never started: the launch was cut off", cause="not started"
        )
    if is_same(state.get("supervisor_pid"), state.get("supervisor_started")):
        return state
    if is_same(state.get("pid"), state.get("pid_started")):
        return dict(
            state, unsupervised=True, reason="its supervisor was killed; it trains on without one"
        )
    if asked.get("finish") == "summary" and os.path.exists(os.path.join(directory, "summary.json")):
        return dict(state, state="finished", corrected=True, reason=None)
    if (
        start_time(_pid(state, "pid")) is not None
        or start_time(_pid(state, "supervisor_pid")) is not None
    ):
        return dict(
            ended,
            reason="killed from outside, its supervisor too; another process has its number by now",
            cause="pid reused",
        )
    return dict(ended, reason="killed from outside, its supervisor too", cause="killed")


def _pid(state: Dict[str, Any], key: str) -> int:
    """0, the number of no process, where none was recorded."""
    value = state.get(key)
    return value if isinstance(value, int) and value > 0 else 0


@operation("runs")
def runs(call: Call, root: str, run: Optional[str] = None) -> Dict[str, Any]:
    layout = Layout(resolve_root(root))
    found = list_runs(layout)
    if run is not None:
        found = [find_run(layout, run, found)]
    return {"runs": found, "host": os.uname().nodename, "root": layout.root}


def find_run(
    layout: Layout, name: str, known: Optional[List[Dict[str, Any]]] = None
) -> Dict[str, Any]:
    """By id, by a unique beginning of it, by the name given to it, or `latest`. Raises Refusal
    otherwise."""
    known = list_runs(layout) if known is None else known
    if not known:
        raise Refusal(
            "NotFound", "no run of this project is on the server", "start one: fab -H … train"
        )
    if name == "latest":
        return known[0]
    exact = [run for run in known if run["run"] == name]
    named = exact or [run for run in known if run["asked"].get("name") == name][:1]
    matching = named or [run for run in known if run["run"].startswith(name)]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise Refusal(
            "NotFound",
            f"no run {name!r:.120} on the server",
            f"the newest is {known[0]['run']}; fab -H … status lists all",
        )
    names = ", ".join(run["run"] for run in matching[:4]) + (", …" if matching[4:] else "")
    raise Refusal(
        "NotFound", f"{len(matching)} runs begin with {name!r:.120}: {names}", "give more of its id"
    )


def queued_state(**more: Any) -> Dict[str, Any]:
    return dict(
        more, state="queued", host=os.uname().nodename, boot_id=boot_id(), since=time.time()
    )
