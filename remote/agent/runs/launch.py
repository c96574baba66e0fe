"""Starting a run once for its id, and asking for its end."""

import contextlib
import os
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from remote.agent.launchers.choice import launcher_of
from remote.agent.launchers.local import last_sign
from remote.agent.launchers.seam import Job, Launched, claim, mark_path
from remote.agent.releases.contents import write_tree
from remote.agent.releases.releases import read_manifest, require_release
from remote.agent.root import program
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import Layout, new_directory, place_in, remove_directory, write_json
from remote.agent.root.roots import keep_agent, portable_agent, prepare_root, require_owner
from remote.agent.root.run_json import load, save
from remote.agent.run_files.attempts import GONE, new_token, queued_state
from remote.agent.run_files.outputs import mark_copied
from remote.agent.run_files.private import keep_private
from remote.agent.run_files.records import Found, find_run, list_runs, require_state
from remote.agent.runs.planned_shutdown import plan_shutdown, require_possible
from remote.agent.runs.queue import one_launch_at_a_time, require_free_gpus
from remote.agent.shared.reading import read
from remote.agent.shared.run_records import Asked, RunDetail
from remote.agent.shared.states import FINAL, LIVE, Outcome
from remote.agent.shared.trees import SYMLINK

SILENT_S = 120.0
"""A host is not taken for gone that has written something since."""
ASIDE = ".new-"
"""Begins the name of a run's directory that is being made, or removed."""


class Start(NamedTuple):
    """An attempt that is to be launched. `asked`: for run.json; of a run that goes on, what differs
    from its attempt before."""

    run: str
    asked: Dict[str, Any]
    # For nobody else to see: a webhook's address, and variables.
    notify: str = ""
    env: Optional[Dict[str, str]] = None
    # What `--shutdown-after` plans.
    shutdown: Optional[Dict[str, Any]] = None


@operation("run_start", takes=Start)
def run_start(call: Call, start: Start) -> Dict[str, Any]:
    """Create the run and launch its supervisor. The id makes it the same start when it is
    repeated."""
    layout = call.layout
    directory = layout.run(start.run)
    prepare_root(call)
    require_possible(layout, start.shutdown)
    asked = read(Asked, start.asked)
    with one_launch_at_a_time(layout):
        again = os.path.isdir(directory)
        if not again:
            create_run(layout, start, asked)
    try:
        launched = launch_once(layout, directory)
    except Refusal as refusal:
        if asked.later and refusal.details.get("limited"):
            launched = Launched("slurm", f"it is submitted later ({refusal.message})")
        elif give_up(directory):
            raise
        else:
            launched = launched_before(load(RunDetail, directory))
    plan_shutdown(layout, start.shutdown)
    return {"again": again, **launched._asdict()}


def give_up(directory: str) -> bool:
    """What the launcher refuses is no run. False where its supervisor has begun all the same: an
    earlier call had started it, or tmux was slow to answer."""
    if not claim(mark_path(directory, load(RunDetail, directory).token)):
        return False
    remove_directory(directory, ASIDE)
    return True


def create_run(layout: Layout, start: Start, asked: Asked) -> None:
    """It waits to be launched then. Under the lock of launches."""
    require_free_gpus(layout, asked)
    with new_run(layout, start.run, asked) as aside:
        save(queued_state(), aside)
        keep_private(aside, start.notify, start.env)


@contextlib.contextmanager
def new_run(layout: Layout, run: str, asked: Asked) -> Iterator[str]:
    """The directory of a run with its own copy of the release; it has its name once the block has
    written the rest."""
    require_release(layout, asked.release)
    with new_directory(layout.run(run), ASIDE) as aside:
        copy_code(layout, asked.release, aside)
        save(asked, aside)
        yield aside


def copy_code(layout: Layout, tree: str, directory: str) -> None:
    """The run's own, which it may change."""
    work, base = os.path.join(directory, "work"), layout.release(tree)
    os.mkdir(work, 0o700)
    begin_ns = os.stat(work).st_ctime_ns
    entries = read_manifest(layout, tree)
    links = [entry for entry in entries if entry[1] == SYMLINK]
    files = [entry for entry in entries if entry[1] != SYMLINK]
    by_hash = {sha256: place_in(base, path) for path, _, _, sha256 in files}
    write_tree(work, files, lambda sha256: (by_hash[sha256], "copy"))
    for path, _, _, _ in links:
        place = place_in(work, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.symlink(os.readlink(place_in(base, path)), place)
    mark_copied(directory, begin_ns)


def launch_once(layout: Layout, directory: str) -> Launched:
    """`launch`, where no call before has done it."""
    state = load(RunDetail, directory)
    if state.state == "queued" and not state.supervisor_pid:
        return launch(layout, directory)
    return launched_before(state)


def launched_before(state: RunDetail) -> Launched:
    return Launched(state.launched or "already")


def launch(layout: Layout, directory: str) -> Launched:
    """Start the supervisor of the attempt that waits, by the launcher that was asked for."""
    kept = keep_agent(layout)
    asked, token = load(Asked, directory), load(RunDetail, directory).token
    if asked.by_slurm and os.path.exists(portable_agent(layout)):
        kept = portable_agent(layout)
    command = program.command(kept, "supervise", directory, token)
    return launcher_of(asked).start(Job(directory, command, asked, token))


@operation("run_stop")
def run_stop(call: Call, run: str, who: str, gone: bool = False) -> Dict[str, Any]:
    """Ask the supervisor to stop the run; it gives the trainer 60 s to save. Returns at once.
    `gone`: its host is, and nobody there will tell the end."""
    require_owner(call)
    layout = call.layout
    found, *others = find_live(layout, run)
    require_state(found)
    if found.state in FINAL:
        return {"run": found.run, "state": found.state, "asked": False}
    if gone:
        with one_launch_at_a_time(layout):
            record_gone(found, who)
        return {"run": found.run, "state": "stopped", "asked": False}
    # On a full disk it is stopped all the same, by a signal of nobody's name.
    with contextlib.suppress(OSError):
        write_json(os.path.join(found.path, "stop.json"), {"who": who, "time": time.time()})
    launcher_of(found.asked).stop(found.path, found.detail)
    goes_on = [other.run for other in others]
    return {"run": found.run, "state": found.state, "asked": True, "others": goes_on}


def find_live(layout: Layout, name: str) -> List[Found]:
    """Of those with that name (of all for `latest`) that have not ended the newest, and the others;
    else the one that find_run finds."""
    known = list_runs(layout)
    live = [run for run in known if run.state in LIVE and name in ("latest", run.asked.name)]
    is_id = any(run.run == name for run in known)
    return live if live and not is_id else [find_run(layout, name, known)]


def record_gone(found: Found, who: str) -> None:
    """The end of a run whose host is gone for good. Where that lives all the same, its supervisor
    sees another token, and ends the training."""
    directory, host = found.path, found.detail.host
    if not found.detail.elsewhere:
        raise Refusal("RunFailed", f"{found.run} is on this very host", "stop it without --gone")
    sign = last_sign(directory)
    silent_s = time.time() - sign
    if silent_s < SILENT_S:
        text = f"{host} lives: {found.run} has written something {silent_s:.0f} s ago"
        raise Refusal("RunFailed", text, "stop it without --gone")
    end = Outcome("stopped", f"its host {host} is gone, says {who}", GONE)
    ended = load(RunDetail, directory).ended_as(end, sign)
    save(ended._replace(token=new_token()), directory)


@operation("run_attach")
def run_attach(call: Call, run: str) -> Dict[str, Any]:
    """The line for the login shell that leads into a run."""
    found = find_run(call.layout, run)
    if found.state != "running" or found.detail.elsewhere:
        raise Refusal(
            "RunFailed",
            f"{found.run} is {found.state} here: there is nothing to attach to",
            f"fab -H … logs --run {found.run} --follow",
        )
    line = launcher_of(found.asked).attach(found.path, found.detail)
    return {"line": line, "launched": found.detail.launched or ""}


def refuse_elsewhere(found: Found) -> None:
    """Of a run that another host has."""
    if found.detail.elsewhere:
        host = found.detail.host
        remedy = f"stop it first: fab -H … stop --run {found.run}"
        raise Refusal("NotFound", f"{found.run} runs on {host}, not on this host", remedy)
