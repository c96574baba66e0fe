"""Starting a run once for its id, and asking for its end."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

from remote.agent.calls import Call, Refusal, operation
from remote.agent.machine.account import kills_at_logout
from remote.agent.machine.processes import is_same
from remote.agent.releases.contents import write_tree
from remote.agent.releases.releases import read_manifest
from remote.agent.root.paths import Layout, read_json, resolve_root, write_json, write_whole
from remote.agent.root.roots import keep_agent, prepare_root
from remote.agent.runs.outputs import mark_copied
from remote.agent.runs.queue import one_launch_at_a_time, require_free_gpus
from remote.agent.runs.records import find_run, queued_state
from remote.agent.shared.names import session_name, socket_name
from remote.agent.shared.states import FINAL


@operation("run_start")
def run_start(
    call: Call,
    root: str,
    project: str,
    identity: Optional[str],
    run: str,
    asked: Dict[str, Any],
    notify: str = "",
) -> Dict[str, Any]:
    """Create the run and launch its supervisor. The id makes it the same start when it is
    repeated."""
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


def keep_address(directory: str, address: str) -> None:
    """Of a webhook: a secret, so in no record, and in a hidden file, which is never fetched."""
    if address:
        write_whole(os.path.join(directory, ".notify"), address.encode() + b"\n")


@contextlib.contextmanager
def new_run(layout: Layout, run: str, asked: Dict[str, Any]) -> Iterator[str]:
    """The directory of a run with its own copy of the release; it has its name once the block has
    written the rest."""
    tree = str(asked["release"])
    if not os.path.isdir(layout.release(tree)):
        raise Refusal(
            "NotFound",
            f"the release {tree[:12]} is not on the server",
            "deploy first: fab -H … deploy",
        )
    aside = os.path.join(layout.runs, f".new-{secrets.token_hex(6)}")
    work = os.path.join(aside, "work")
    os.makedirs(work, mode=0o700)
    begin_ns = os.stat(work).st_ctime_ns
    try:
        base = os.fsencode(layout.release(tree))
        entries = read_manifest(layout, tree)
        by_hash = {
            sha256: os.path.join(base, path.encode("utf-8", "surrogateescape"))
            for path, mode, _, sha256 in entries
        }
        links = [entry for entry in entries if entry[1] == 0o120000]
        write_tree(
            work,
            [entry for entry in entries if entry[1] != 0o120000],
            lambda sha256: (by_hash[sha256], "copy"),
        )
        for path, _, _, _ in links:
            place = os.path.join(os.fsencode(work), path.encode("utf-8", "surrogateescape"))
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.symlink(
                os.readlink(os.path.join(base, path.encode("utf-8", "surrogateescape"))), place
            )
        mark_copied(aside, begin_ns)
        write_json(os.path.join(aside, "run.json"), asked)
        yield aside
        os.rename(aside, layout.run(run))
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def launch(layout: Layout, directory: str, run: str) -> Tuple[str, Optional[str]]:
    """Start the supervisor so that it outlives this login. Returns how, and what a person should
    know about it."""
    program = keep_agent(layout)
    command = [sys.executable, "-I", "-S", program, "supervise", directory]
    note = None
    scope = _lingering_scope()
    if scope is None and kills_at_logout():
        note = (
            "this server kills a user's processes at logout: ask its administrator for `loginctl"
            " enable-linger`"
        )
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
            (scope or []) + command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=directory,
        )
    return "setsid", note


def _launch_tmux(tmux: List[str], directory: str, run: str, command: List[str]) -> Optional[str]:
    """None when tmux holds the session, else what it said."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")
    }
    if not any(environment.get(key) for key in ("LC_ALL", "LC_CTYPE", "LANG")):
        environment["LC_CTYPE"] = "C.UTF-8"
    arguments = [
        "-L",
        socket_name(directory),
        "-f",
        "/dev/null",
        "new-session",
        "-d",
        "-s",
        session_name(run),
        "-x",
        "120",
        "-y",
        "40",
    ]
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
    return (
        None
        if done.returncode == 0
        else done.stdout.decode("utf-8", "replace").strip()[-200:] or f"exit code {done.returncode}"
    )


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


@operation("run_stop")
def run_stop(call: Call, root: str, run: str, who: str) -> Dict[str, Any]:
    """Ask the supervisor to stop the run; it gives the trainer 60 s to save. Returns at once."""
    layout = Layout(resolve_root(root))
    found = find_run(layout, run)
    state = found["detail"]
    if found["state"] in FINAL:
        return {"run": found["run"], "state": found["state"], "asked": False}
    if state.get("elsewhere"):
        raise Refusal(
            "NotFound",
            f"{found['run']} runs on {state.get('host')}, not on this host",
            "stop it with -H of that host",
        )
    write_json(os.path.join(found["path"], "stop.json"), {"who": who, "time": time.time()})
    if is_same(state.get("supervisor_pid"), state.get("supervisor_started")):
        os.kill(int(state["supervisor_pid"]), signal.SIGTERM)
    elif is_same(state.get("pid"), state.get("pid_started")):
        os.kill(int(state["pid"]), signal.SIGTERM)
    return {"run": found["run"], "state": found["state"], "asked": True}
