"""Runs on the very machine that is logged in to: in a tmux of their own, or by setsid."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from typing import List, Optional

from remote.agent.launchers.seam import Job, Launched, Looked
from remote.agent.machine.account import kills_at_logout
from remote.agent.machine.processes import boot_id, is_same, start_time
from remote.agent.root.calls import Refusal
from remote.agent.shared.names import session_name, socket_name
from remote.agent.shared.run_records import Asked, RunDetail
from remote.agent.shared.states import Cause

NEVER_STARTED_S = 60.0
SIGNS = ("train.log", "state.json", "progress.json", "gpu.csv")
"""Written while a run, or its supervisor, lives."""


def start(job: Job) -> Launched:
    asked = job.asked.launcher
    scope, notes = _lingering_scope(), []
    if scope is None and kills_at_logout():
        notes.append(
            "this server kills a user's processes at logout: ask its administrator for `loginctl"
            " enable-linger`"
        )
    if asked == "auto" and shutil.which("sbatch"):
        notes.append(
            "this server has Slurm: where trainings belong into its queue, set remote.launcher:"
            " slurm in fabric.yaml"
        )
    tmux = shutil.which("tmux") if asked != "setsid" else None
    problem = "no tmux on the server"
    if tmux:
        problem = _start_tmux([*(scope or []), tmux], job) or ""
        if not problem:
            return Launched("tmux", "; ".join(notes) or None)
        problem = f"tmux did not start ({problem})"
    if asked == "tmux":
        raise Refusal("ServerUnfit", problem, "set remote.launcher: auto in fabric.yaml")
    if asked == "auto":
        notes.append(f"{problem}: the run was started with setsid instead")
    start_detached(job.command, job.directory, "supervisor.log")
    return Launched("setsid", "; ".join(notes) or None)


def start_detached(command: List[str], directory: str, log_name: str) -> int:
    """Its process id; it outlives this login."""
    with open(os.path.join(directory, log_name), "ab") as log:
        return subprocess.Popen(
            [*(_lingering_scope() or []), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=directory,
        ).pid


def _start_tmux(tmux: List[str], job: Job) -> Optional[str]:
    """None when tmux holds the session, else what it said."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")
    }
    if not any(environment.get(key) for key in ("LC_ALL", "LC_CTYPE", "LANG")):
        environment["LC_CTYPE"] = "C.UTF-8"
    server = ["-L", socket_name(job.directory), "-f", "/dev/null", "new-session", "-d"]
    session = ["-s", session_name(os.path.basename(job.directory)), "-x", "120", "-y", "40"]
    try:
        done = subprocess.run(
            [*tmux, *server, *session, "-c", job.directory, *job.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    said = done.stdout.decode("utf-8", "replace").strip()[-200:]
    return (said or f"exit code {done.returncode}") if done.returncode else None


def _lingering_scope() -> Optional[List[str]]:
    """Where logout kills but lingering is on, a scope of the user's own service manager keeps the
    run."""
    user = os.path.join("/var/lib/systemd/linger", os.environ.get("USER", ""))
    if (
        os.environ.get("USER")
        and os.path.exists(user)
        and shutil.which("systemd-run")
        and os.environ.get("XDG_RUNTIME_DIR")
    ):
        return ["systemd-run", "--user", "--scope", "--quiet"]
    return None


def look(directory: str, state: RunDetail, asked: Asked) -> Looked:
    """By its processes, on the host that recorded it; elsewhere it is told as recorded."""
    return _look(directory, state, asked), None


def _look(directory: str, state: RunDetail, asked: Asked) -> RunDetail:
    if state.host != os.uname().nodename:
        # Homes may be shared: only the host that runs it can tell whether it lives.
        silent_s = max(0.0, time.time() - last_sign(directory))
        ago = f"{silent_s / 3600:.0f} h" if silent_s >= 7200 else f"{silent_s / 60:.0f} min"
        return state._replace(
            elsewhere=True,
            reason=f"as recorded by {state.host}, which alone can tell whether it lives;"
            f" it last wrote {ago} ago",
        )

    def failed(cause: Cause, reason: str) -> RunDetail:
        """Unless our trainer's summary says that all was done."""
        summary = os.path.join(directory, "summary.json")
        if asked.is_trainer and os.path.exists(summary):
            return state._replace(state="finished", reason=None)
        return state._replace(state="failed", reason=reason, cause=cause)

    if state.boot_id != boot_id():
        return failed("rebooted", "the server was rebooted")
    if state.state == "queued" and not state.supervisor_pid:
        if time.time() - (state.since or 0) < NEVER_STARTED_S:
            return state
        return failed("not started", "it was never started: the launch was cut off")
    if is_same(state.supervisor_pid, state.supervisor_started):
        return state
    if is_same(state.pid, state.pid_started):
        reason = "its supervisor was killed; it trains on without one"
        return state._replace(unsupervised=True, reason=reason)
    if any(start_time(pid) is not None for pid in (state.pid, state.supervisor_pid)):
        return failed(
            "pid reused",
            "killed from outside, its supervisor too; another process has its number by now",
        )
    return failed("killed", "killed from outside, its supervisor too")


def last_sign(directory: str) -> float:
    """When a run, or its supervisor, has last written; 0 where nothing shows it."""
    signs = [os.path.join(directory, name) for name in SIGNS]
    return max((os.path.getmtime(sign) for sign in signs if os.path.exists(sign)), default=0.0)


def stop(directory: str, state: RunDetail) -> None:
    if state.elsewhere:  # its supervisor there sees stop.json; these are no numbers of ours
        return
    if is_same(state.supervisor_pid, state.supervisor_started):
        os.kill(state.supervisor_pid, signal.SIGTERM)
    elif is_same(state.pid, state.pid_started):
        os.kill(state.pid, signal.SIGTERM)


def attach(directory: str, state: RunDetail) -> str:
    run = os.path.basename(directory)
    if state.launched != "tmux":
        text = f"{run} was started without tmux, so it has no terminal to go to"
        remedy = "to answer it, stop it, install tmux there, and train again"
        raise Refusal("RunFailed", text, remedy)
    # tmux refuses a terminal that the server's terminfo does not know (kitty, ghostty, wezterm).
    script = (
        'infocmp "$TERM" >/dev/null 2>&1 || TERM=xterm-256color; export TERM; exec tmux -L "$1"'
        ' attach-session -t "$2"'
    )
    target = shlex.quote("=" + session_name(run))
    return f"exec sh -c '{script}' sh {socket_name(directory)} {target}"
