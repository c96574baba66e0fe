"""Runs: started once by their id, told truthfully, stopped politely."""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

from .calls import Call, Refusal, operation
from .contents import write_tree
from .names import session_name, socket_name
from .outputs import mark_copied
from .paths import RUN_ID, Layout, read_json, resolve_root, write_json, write_whole
from .processes import boot_id, is_same, start_time
from .releases import read_manifest
from .roots import keep_agent, prepare_root
from .terminal import read_shown

FINAL = ("finished", "failed", "stopped")
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
    return sorted(runs, key=lambda run: (_number(run["detail"].get("since")), run["run"]), reverse=True)


def _number(value: object) -> float:
    """`since` is this server's own clock: laptops' clocks may be years apart, and would choose a wrong `latest`."""
    return float(value) if isinstance(value, (int, float)) else 0.0


def describe_run(layout: Layout, run: str) -> Dict[str, Any]:
    """What the files say, judged: a record of `running` whose processes are gone is told as what it is."""
    directory = layout.run(run)
    asked = read_json(os.path.join(directory, "run.json")) or {}
    state = judge(directory, read_json(os.path.join(directory, "state.json")) or {}, asked)
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
            return max((entry.stat().st_mtime for entry in scan if entry.name.endswith(".ckpt")), default=None)
    except OSError:
        return None


def read_mark(directory: str, state: Dict[str, Any]) -> Dict[str, Any]:
    """What a laptop has of this run since it ended; empty if it was not fetched since."""
    mark = read_json(os.path.join(directory, FETCHED)) or {}
    return mark if isinstance(mark.get("time"), (int, float)) and mark.get("ended") == state.get("ended") else {}


def read_fetched(directory: str, state: Dict[str, Any]) -> Optional[float]:
    """When this run was fetched completely after its end; None if it was not, or if remote.results left something of it there."""
    mark = read_mark(directory, state)
    return float(mark["time"]) if mark and not mark.get("narrowed") else None


def judge(directory: str, state: Dict[str, Any], asked: Dict[str, Any]) -> Dict[str, Any]:
    """Correct a recorded state by what can be seen now, on the host that recorded it; elsewhere it is told as recorded."""
    if state.get("state") not in ("queued", "running"):
        return state
    if state.get("host") != os.uname().nodename:
        # Homes may be shared: only the host that runs it can tell whether it lives.
        return dict(state, elsewhere=True, reason=f"as recorded by {state.get('host')}, which alone can tell whether it lives")
    ended = dict(state, state="failed", judged=True)
    if state.get("boot_id") != boot_id():
        return dict(ended, reason="the server was rebooted", cause="rebooted")
    if state.get("state") == "queued" and not state.get("supervisor_pid"):
        if time.time() - float(state.get("since") or 0) < 60:
            return state
        return dict(ended, reason="it was never started: the launch was cut off", cause="not started")
    if is_same(state.get("supervisor_pid"), state.get("supervisor_started")):
        return state
    if is_same(state.get("pid"), state.get("pid_started")):
        return dict(state, unsupervised=True, reason="its supervisor was killed; it trains on without one")
    if asked.get("finish") == "summary" and os.path.exists(os.path.join(directory, "summary.json")):
        return dict(state, state="finished", judged=True, reason=None)
    if start_time(_pid(state, "pid")) is not None or start_time(_pid(state, "supervisor_pid")) is not None:
        return dict(ended, reason="killed from outside, its supervisor too; another process has its number by now", cause="pid reused")
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


def find_run(layout: Layout, name: str, known: Optional[List[Dict[str, Any]]] = None) -> Dict[str, Any]:
    """By id, by a unique beginning of it, by the name given to it, or `latest`. Raises Refusal otherwise."""
    known = list_runs(layout) if known is None else known
    if not known:
        raise Refusal("NotFound", "no run of this project is on the server", "start one: fab -H … train")
    if name == "latest":
        return known[0]
    exact = [run for run in known if run["run"] == name]
    named = exact or [run for run in known if run["asked"].get("name") == name][:1]
    matching = named or [run for run in known if run["run"].startswith(name)]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise Refusal("NotFound", f"no run {name!r:.120} on the server", f"the newest is {known[0]['run']}; fab -H … status lists all")
    raise Refusal("NotFound", f"{len(matching)} runs begin with {name!r:.120}", "give more of its id")


@operation("run_start")
def run_start(
    call: Call, root: str, project: str, identity: Optional[str], run: str, asked: Dict[str, Any], notify: str = ""
) -> Dict[str, Any]:
    """Create the run and launch its supervisor. The id makes it the same start when it is repeated."""
    layout = Layout(resolve_root(root))
    directory = layout.run(run)
    prepare_root(layout, project, identity)
    again = os.path.isdir(directory)
    if not again:
        with one_launch_at_a_time(layout):
            require_free_gpus(layout, asked)
            with new_run(layout, run, asked) as aside:
                write_json(os.path.join(aside, "state.json"), queued_state())
                keep_address(aside, notify)
    state = read_json(os.path.join(directory, "state.json")) or {}
    if state.get("state") == "queued" and not state.get("supervisor_pid"):
        how, note = launch(layout, directory, run)
    else:
        how, note = str(state.get("launched") or "already"), None
    return {"run": run, "path": directory, "launched": how, "note": note, "again": again}


@contextlib.contextmanager
def one_launch_at_a_time(layout: Layout) -> Iterator[None]:
    fd = os.open(os.path.join(layout.runs, ".launch.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def require_free_gpus(layout: Layout, asked: Dict[str, Any]) -> None:
    """GPUs that were chosen because they seemed free must still be: given to no other run, and used by nobody else.

    This is the second look at them; the first was the laptop's.
    """
    wanted = asked.get("gpus")
    if asked.get("devices") != "auto" or not isinstance(wanted, list) or not wanted:
        return
    from .waiting import free_gpus  # loaded with all operations: the program's file may be gone by now

    live = [run for run in list_runs(layout) if run["state"] not in FINAL and isinstance(run["gpus"], list)]
    taken = {uuid: run["run"] for run in live for uuid in run["gpus"] if uuid in wanted}
    if not taken:
        free, reason = free_gpus(layout, "")
        known = [uuid for uuid, _ in free]
        taken = {uuid: "somebody" for uuid in wanted if uuid not in known}
        if taken:
            raise Refusal("GpuUnfit", f"the GPUs are in use by now: {reason}", "wait, or name one: --devices 0", taken=taken)
    if taken:
        holders = ", ".join(sorted(set(taken.values())))
        raise Refusal("GpuUnfit", f"the GPUs were given to {holders} just now", "wait, or name one: --devices 0", taken=taken)


def keep_address(directory: str, address: str) -> None:
    """Of a webhook: a secret, so in no record, and in a hidden file, which is never fetched."""
    if address:
        write_whole(os.path.join(directory, ".notify"), address.encode() + b"\n")


def queued_state(**more: Any) -> Dict[str, Any]:
    return dict(more, state="queued", host=os.uname().nodename, boot_id=boot_id(), since=time.time())


@contextlib.contextmanager
def new_run(layout: Layout, run: str, asked: Dict[str, Any]) -> Iterator[str]:
    """The directory of a run with its own copy of the release; it has its name once the block has written the rest."""
    tree = str(asked["release"])
    if not os.path.isdir(layout.release(tree)):
        raise Refusal("NotFound", f"the release {tree[:12]} is not on the server", "deploy first: fab -H … deploy")
    aside = os.path.join(layout.runs, f".new-{secrets.token_hex(6)}")
    work = os.path.join(aside, "work")
    os.makedirs(work, mode=0o700)
    begin_ns = os.stat(work).st_ctime_ns
    try:
        base = os.fsencode(layout.release(tree))
        entries = read_manifest(layout, tree)
        by_hash = {sha256: os.path.join(base, path.encode("utf-8", "surrogateescape")) for path, mode, _, sha256 in entries}
        links = [entry for entry in entries if entry[1] == 0o120000]
        write_tree(work, [entry for entry in entries if entry[1] != 0o120000], lambda sha256: (by_hash[sha256], "copy"))
        for path, _, _, _ in links:
            place = os.path.join(os.fsencode(work), path.encode("utf-8", "surrogateescape"))
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.symlink(os.readlink(os.path.join(base, path.encode("utf-8", "surrogateescape"))), place)
        mark_copied(aside, begin_ns)
        write_json(os.path.join(aside, "run.json"), asked)
        yield aside
        os.rename(aside, layout.run(run))
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def launch(layout: Layout, directory: str, run: str) -> Tuple[str, Optional[str]]:
    """Start the supervisor so that it outlives this login. Returns how, and what a person should know about it."""
    program = keep_agent(layout)
    command = [sys.executable, "-I", "-S", program, "supervise", directory]
    note = None
    scope = _lingering_scope()
    if scope is None and _logout_kills():
        note = "this server kills a user's processes at logout: ask its administrator for `loginctl enable-linger`"
    tmux = shutil.which("tmux")
    if tmux:
        problem = _launch_tmux((scope or []) + [tmux], directory, run, command)
        if problem is None:
            return "tmux", note
        note = f"tmux did not start ({problem}); the run was started with setsid instead"
    else:
        note = note or "no tmux on the server: the run was started with setsid instead"
    with open(os.path.join(directory, "supervisor.log"), "ab") as log:
        subprocess.Popen(
            (scope or []) + command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=directory
        )
    return "setsid", note


def _launch_tmux(tmux: List[str], directory: str, run: str, command: List[str]) -> Optional[str]:
    """None when tmux holds the session, else what it said."""
    environment = {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}
    if not any(environment.get(key) for key in ("LC_ALL", "LC_CTYPE", "LANG")):
        environment["LC_CTYPE"] = "C.UTF-8"
    arguments = ["-L", socket_name(directory), "-f", "/dev/null", "new-session", "-d", "-s", session_name(run), "-x", "120", "-y", "40"]
    try:
        done = subprocess.run(
            tmux + arguments + ["-c", directory] + command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    return None if done.returncode == 0 else done.stdout.decode("utf-8", "replace").strip()[-200:] or f"exit code {done.returncode}"


def _logout_kills() -> bool:
    from .facts import kills_at_logout

    return kills_at_logout()


def _lingering_scope() -> Optional[List[str]]:
    """Where logout kills but lingering is on, a scope of the user's own service manager keeps the run."""
    user = os.path.join("/var/lib/systemd/linger", os.environ.get("USER", ""))
    if os.environ.get("USER") and os.path.exists(user) and shutil.which("systemd-run") and os.environ.get("XDG_RUNTIME_DIR"):
        return ["systemd-run", "--user", "--scope", "--quiet"]
    return None


@operation("run_stop")
def run_stop(call: Call, root: str, run: str, who: str) -> Dict[str, Any]:
    """Ask the supervisor to stop the run; it gives the trainer 60 s to save. Returns at once."""
    layout = Layout(resolve_root(root))
    found = find_run(layout, run)
    state = found["detail"]
    if found["state"] in FINAL:
        return {"run": found["run"], "state": found["state"], "asked": False}
    if state.get("elsewhere"):
        raise Refusal("NotFound", f"{found['run']} runs on {state.get('host')}, not on this host", "stop it with -H of that host")
    write_json(os.path.join(found["path"], "stop.json"), {"who": who, "time": time.time()})
    if is_same(state.get("supervisor_pid"), state.get("supervisor_started")):
        os.kill(int(state["supervisor_pid"]), signal.SIGTERM)
    elif is_same(state.get("pid"), state.get("pid_started")):
        os.kill(int(state["pid"]), signal.SIGTERM)
    return {"run": found["run"], "state": found["state"], "asked": True}
