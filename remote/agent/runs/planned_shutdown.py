"""`--shutdown-after`: the server is shut down once its last run has ended and a grace is over. A
process of its own waits for that; shutdown.json holds the plan, and `keep` ends it."""

import contextlib
import os
import shutil
import signal
import time
from typing import Any, Dict, List, Optional, Tuple

from remote.agent.launchers.local import last_sign, start_detached
from remote.agent.machine.others import at_work, own_processes, roots_of
from remote.agent.machine.processes import is_same, start_time
from remote.agent.machine.programs import ask
from remote.agent.root import program
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import Layout, layout_of, read_json, write_json
from remote.agent.root.roots import keep_agent
from remote.agent.run_files.records import Found, list_runs, read_mark
from remote.agent.runs.queue import one_launch_at_a_time
from remote.agent.runs.shutdown import carry_out, default_command
from remote.agent.shared.states import FINAL
from remote.agent.shared.text import one_line

LOOK_S = float(os.environ.get("REMOTE_SHUTDOWN_LOOK_S", "30"))
GOING_S = float(os.environ.get("REMOTE_SHUTDOWN_GOING_S", "300"))
"""A machine that was told to go down and is there after so long was not shut down."""

STAYED = "the command was accepted, but the server is still there"

Plan = Dict[str, Any]
"""grace_s, unfetched_s, command, since, and its guard's host, pid and pid_started; waiting: why it
is not shut down though its time has come; problem: what came of the last try; done: it was told to
go."""


def read_plan(layout: Layout) -> Optional[Plan]:
    return read_json(layout.shutdown)


# -- for the laptop


def plan_shutdown(layout: Layout, asked: Optional[Plan]) -> None:
    """In place of any plan before; `require_possible` has been asked. None: it stays as it is."""
    if asked:
        with one_launch_at_a_time(layout):
            end_guard(layout)
            start_guard(layout, asked)


@operation("keep")
def keep(call: Call) -> Dict[str, Any]:
    """Answers the plan that was given up, as `describe_plan` tells it; None: there was none."""
    layout = call.layout
    if not os.path.isdir(layout.runs):
        return {"cancelled": None}
    with one_launch_at_a_time(layout):
        cancelled = describe_plan(layout, list_runs(layout))
        end_guard(layout)
    return {"cancelled": cancelled}


def describe_plan(layout: Layout, runs: List[Found]) -> Optional[Dict[str, Any]]:
    """`left_s`: until it is shut down, None while a run goes on; `why` it is then and not
    earlier."""
    plan = read_plan(layout)
    if plan is None or (plan.get("done") and not has_guard(plan)):
        return None
    due, why = when_due(plan, runs)
    left_s = None if due is None else max(0.0, due - time.time())
    told = ("grace_s", "unfetched_s", "waiting", "problem")
    return dict({key: plan.get(key) for key in told}, left_s=left_s, why=why)


def look_after_plan(layout: Layout) -> None:
    """A guard that was killed, or has gone with a boot, is started again; its grace begins anew.
    That of a host which shares the disk is that host's own."""
    plan = read_plan(layout)
    if plan is None or is_elsewhere(plan):
        return
    if not plan.get("done") and not has_guard(plan):
        with one_launch_at_a_time(layout):
            again = read_plan(layout)
            if again == plan:
                start_guard(layout, plan)


def require_possible(layout: Layout, asked: Optional[Plan]) -> None:
    """Raises Refusal where a shutdown that is asked for could not be had, or could harm people
    nobody sees."""
    if not asked:
        return
    known = read_plan(layout) or {}
    if is_elsewhere(known) and not known.get("done"):
        text = f"{known['host']} shares this disk, which holds one plan, and is to be shut down"
        raise Refusal("ServerUnfit", text, "leave out --shutdown-after, or `keep` that one on")
    if not os.path.exists("/proc/1"):
        text = "this server hides other people's processes: it might be shut down under them"
        raise Refusal("ServerUnfit", text, "leave out --shutdown-after")
    if asked.get("command"):
        return
    remedy = "set remote.shutdown in fabric.yaml to the command that your provider names"
    words = default_command().split()
    problem = None if shutil.which(words[0]) else f"there is no `{words[0]}` on the server"
    if not problem and words[0] == "sudo":
        said = ask(["sudo", "-n", "-l", *words[2:]], 60)
        problem = "sudo asks for a password there" if said.code else None
    if problem:
        raise Refusal("ServerUnfit", f"--shutdown-after: {problem}", remedy)


# -- when


def when_due(plan: Plan, runs: List[Found]) -> Tuple[Optional[float], str]:
    """By this server's clock, and why not earlier; None while a run has not ended."""
    grace, unfetched = float(plan.get("grace_s") or 0), float(plan.get("unfetched_s") or 0)
    due, why = float(plan.get("since") or 0) + grace, ""
    for run in runs:
        if run.detail.elsewhere:
            continue
        if run.state not in FINAL:
            return None, f"{run.run} is {run.state}"
        ended, mark = ended_at(run), read_mark(run.path, run.detail)
        if mark:
            own, reason = max(ended, float(mark["time"])) + grace, ""
        else:
            own, reason = ended + max(grace, unfetched), f"{run.run} was not fetched"
        if own > due:
            due, why = own, reason
    return due, why


def ended_at(run: Found) -> float:
    """Of one that was killed with its supervisor: its last sign of life."""
    return last_sign(run.path) if run.detail.ended is None else run.detail.ended


# -- the process that waits


def start_guard(layout: Layout, plan: Plan) -> None:
    """Under the lock of launches, so that its first look finds itself in the plan."""
    command = program.command(keep_agent(layout), "guard", layout.root)
    pid = start_detached(command, layout.root, "shutdown.log")
    kept = {key: plan.get(key) for key in ("grace_s", "unfetched_s", "command")}
    host = os.uname().nodename
    own = {"since": time.time(), "host": host, "pid": pid, "pid_started": start_time(pid)}
    write_json(layout.shutdown, {**kept, **own})


def end_guard(layout: Layout) -> None:
    plan = read_plan(layout)
    if plan is not None:
        os.unlink(layout.shutdown)
        if has_guard(plan):
            os.kill(int(plan["pid"]), signal.SIGTERM)


def has_guard(plan: Plan) -> bool:
    return not is_elsewhere(plan) and is_same(plan.get("pid"), plan.get("pid_started"))


def is_elsewhere(plan: Plan) -> bool:
    return plan.get("host") not in (None, os.uname().nodename)


def guard(root: str) -> int:
    """Looks until the plan is another one's or none. What fails once is tried again."""
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    watcher = Guard(Layout(root))
    while True:
        try:
            pause = watcher.look()
        except Exception:
            with contextlib.suppress(OSError):
                import traceback  # takes long to load

                traceback.print_exc()
            pause = LOOK_S
        if pause is None:
            return 0
        time.sleep(pause)


class Guard:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.saw_live = False

    def look(self) -> Optional[float]:
        """Seconds until the next look; None: its plan is no more."""
        with one_launch_at_a_time(self.layout):
            plan = read_plan(self.layout)
            if plan is None or plan.get("pid") != os.getpid():
                return None
            if plan.get("done"):
                self.change(plan, done=None, since=time.time(), problem=STAYED)
                return LOOK_S
            due, _ = when_due(plan, list_runs(self.layout))
            if due is not None and self.saw_live:
                plan["since"] = time.time()
                due = max(due, plan["since"] + float(plan["grace_s"]))
            self.saw_live = due is None
            if due is None or due > time.time():
                self.change(plan, waiting=None)
                return LOOK_S
            waiting = who_is_there(self.layout, float(plan["grace_s"]))
            if waiting:
                self.change(plan, waiting=one_line(waiting, 300))
                return LOOK_S
            return self.shut_down(plan)

    def shut_down(self, plan: Plan) -> float:
        """Written down before: after the next boot the plan is over."""
        self.change(plan, waiting=None, problem=None, done=time.time())
        try:
            carry_out(str(plan.get("command") or "") or default_command())
        except Refusal as refusal:
            self.change(plan, done=None, since=time.time(), problem=refusal.message)
            return LOOK_S
        return GOING_S

    def change(self, plan: Plan, **changes: Any) -> None:
        changed = {**plan, **changes}
        if changed != read_plan(self.layout):
            # A full disk is no reason to go on paying: at worst the next boot plans it anew.
            with contextlib.suppress(OSError):
                write_json(self.layout.shutdown, changed)


def who_is_there(layout: Layout, grace_s: float) -> str:
    """Whom a shutdown now would harm; empty: nobody."""
    processes = own_processes()
    for directory in roots_of(processes, b"supervise"):
        root = layout_of(directory).root
        if root != layout.root:
            return f"a run of {root}"
    for root in roots_of(processes, b"guard"):
        other = Layout(root)
        plan = read_plan(other)
        if root != layout.root and plan is not None and not plan.get("done"):
            due, _ = when_due(plan, list_runs(other))
            if due is None or due > time.time():
                return f"the plan of {root}"
    return "; ".join(at_work(processes, grace_s))
