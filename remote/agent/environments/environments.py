"""Environments on the server: what is there, making one, following one that is being made. The
laptop decides which."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from typing import Any, Dict, List, Optional, Set

from remote.agent.environments import (
    gpu_check,
    installers,
    interpreters,
    pip_settings,
    python_places,
)
from remote.agent.environments.builder import describe_plan
from remote.agent.launchers.slurm_nodes import in_a_job, raise_if_refused
from remote.agent.machine.processes import group_members, is_same
from remote.agent.root import program
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.disk import require_room
from remote.agent.root.locks import Lock
from remote.agent.root.paths import (
    HASH,
    Layout,
    list_names,
    random_name,
    read_json,
    remove_file,
    write_json,
    write_whole,
)
from remote.agent.root.roots import keep_agent, portable_agent, prepare_root
from remote.agent.shared.build_plan import BuildPlan
from remote.agent.shared.environment import Environment, Signature
from remote.agent.shared.reading import read, tell

POLL_S = 0.1
EVENT_EVERY_S = 0.2
MAX_STARTS = 2
"""A builder that dies twice without a word is not started a third time."""
MANY_FILES = 30_000
"""In an environment with torch."""


def list_environments(layout: Layout) -> List[Environment]:
    """Every environment with a record: `ready`, and `valid` or what `changed`, told without
    starting a python."""
    keys = sorted(filter(HASH.match, list_names(layout.environments)))
    return [found for found in (describe_environment(layout, key) for key in keys) if found]


def describe_environment(layout: Layout, key: str) -> Optional[Environment]:
    """None where there's no directory."""
    directory = layout.environment(key)
    if not os.path.isdir(directory):
        return None
    made = gpu_check.read_environment(directory)
    if made is None:
        return Environment(key, building=_is_building(layout, key))
    python = made.real_python or made.python
    changed = interpreters.same_signature(made.signature, python, made.version)
    proofs = gpu_check.read_proofs(directory)
    told = made._replace(key=key, signature=Signature())
    return told._replace(valid=changed is None, changed=changed, proofs=proofs)


@operation("environment_inspect")
def environment_inspect(
    call: Call, configured: str = "", detail: Optional[List[str]] = None
) -> Dict[str, Any]:
    """Interpreters with what is installed in them, uv, conda, and whether pip asks no index."""
    line = "looking at what the server's interpreters have"
    call.event(step="inspect", line=line, seconds=0.0)
    path = python_places.login_environment().get("PATH")
    config = pip_settings.pip_config(python_places.plain_environment())
    return {
        "interpreters": tell(interpreters.list_interpreters(configured, path, detail or [])),
        "uv": installers.find_uv(),
        "virtualenv": shutil.which("virtualenv"),
        "conda": installers.find_conda(),
        "no_index": pip_settings.is_on(config, "no-index"),
    }


@operation("environment_prepare")
def environment_prepare(call: Call, plan: Dict[str, Any]) -> Dict[str, Any]:
    """Carry out the laptop's plan; the same plan again finds its work done, or follows the build
    that is under way.

    Events: step, line, seconds, and amount ([bytes, of bytes]) while something is downloaded.
    Raises Refusal with kind EnvironmentFailed where it can't be made.
    """
    layout, wanted = call.layout, read(BuildPlan, plan)
    prepare_root(call)
    directory = layout.environment(wanted.key)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    known = describe_environment(layout, wanted.key)
    built = known is None or not known.valid
    if built and wanted.kind == "as-is":
        _record_as_is(directory, wanted)
    elif built:
        _build(call, layout, wanted, directory)
    return {"environment": tell(describe_environment(layout, wanted.key)), "built": built}


def _record_as_is(directory: str, plan: BuildPlan) -> None:
    """Nothing is built: the record points to the interpreter."""
    found = interpreters.describe(plan.python, plan.detail)
    if found.problem:
        remedy = "set remote.python to an interpreter that works"
        raise Refusal("EnvironmentFailed", found.problem, remedy)
    made = describe_plan(plan, found)._replace(
        python=_python_by_name(directory, found.path),
        real_python=found.path,
        prefix=found.prefix if found.is_venv else None,
    )
    remove_file(os.path.join(directory, gpu_check.PROOFS))
    write_json(os.path.join(directory, "env.json"), made.to_json())
    write_whole(os.path.join(directory, "ready"), b"")


def _python_by_name(directory: str, path: str) -> str:
    """The interpreter, if its directory has it as `python` too, so that a run's `python` is this
    one; else what leads to it."""
    by_name = os.path.join(os.path.dirname(path), "python")
    if os.path.realpath(by_name) == os.path.realpath(path):
        return by_name
    place = os.path.join(directory, "bin")
    python_places.lead_to(path, place, ("python", "python3"))
    return os.path.join(place, "python")


def _build(call: Call, layout: Layout, plan: BuildPlan, directory: str) -> None:
    """Start the builder, or follow the one that is at it; returns when `ready` is there. Raises
    Refusal."""
    followed: Set[str] = set()
    starts = 0
    lock = Lock(_lock_path(layout, plan.key))
    try:
        while True:
            if not _follow(call, directory, lock, followed):
                raise BrokenPipeError
            # The lock is ours: no builder lives.
            made = describe_environment(layout, plan.key)
            if made is not None and made.valid:
                return
            state = read_json(os.path.join(directory, "build.json")) or {}
            if state.get("id") in followed and state.get("phase") == "failed":
                message, remedy = str(state.get("message")), str(state.get("remedy"))
                raise Refusal("EnvironmentFailed", message, remedy)
            if state.get("id") in followed and plan.job is not None:
                raise_if_refused(directory, state)
            if starts >= MAX_STARTS:
                log = os.path.join(directory, "build.log")
                remedy = f"mostly for lack of memory; see {log} there"
                raise Refusal("EnvironmentFailed", "the builder was killed, twice", remedy)
            if state.get("phase") == "running":
                line = "the last build was cut off; building again"
                call.event(step="venv", line=line, seconds=0.0)
            followed.add(_start_builder(layout, plan, directory, state, lock))
            starts += 1
            # The builder has this lock now; ours must be another, or it would be free for us.
            lock.hand_over()
            lock = Lock(_lock_path(layout, plan.key))
    finally:
        lock.close()


def _follow(call: Call, directory: str, lock: Lock, followed: Set[str]) -> bool:
    """Tell of the build until its lock is free, which is then held by `lock`. False if the laptop
    is gone."""
    told: Any = None
    told_at = 0.0
    while not lock.take():
        if not call.alive():
            return False
        state: Dict[str, Any] = read_json(os.path.join(directory, "build.json")) or {}
        if isinstance(state.get("id"), str):
            followed.add(state["id"])
        news: Dict[str, Any] = {name: state.get(name) for name in ("step", "line", "amount")}
        now = time.monotonic()
        if state and ((news != told and now - told_at >= EVENT_EVERY_S) or now - told_at >= 2.0):
            seconds = round(time.time() - float(state.get("started") or time.time()), 1)
            call.event(**news, seconds=seconds)
            told, told_at = news, now
        time.sleep(POLL_S)
    return True


def _start_builder(
    layout: Layout, plan: BuildPlan, directory: str, last: Dict[str, Any], lock: Lock
) -> str:
    """Clear what a dead builder left, and start one that holds `lock`. Returns the build's id."""
    _end_leftovers(last)
    _make_room(directory, plan.need_mib)
    build = random_name(8)
    write_json(os.path.join(directory, "plan.json"), tell(plan))
    state = {"id": build, "phase": "running", "started": time.time(), "host": os.uname().nodename}
    in_job = plan.job is not None
    state.update(directory=directory, step="venv", line="waits for a node of Slurm's" * in_job)
    write_json(os.path.join(directory, "build.json"), state)
    kept, own = keep_agent(layout), [str(lock.file), lock.record]
    words = program.command(kept, "build", directory, *own)
    if in_job:
        inside = program.command(portable_agent(layout), "build", directory)
        words = program.command(kept, "hold", *own, *in_a_job(directory, plan.job or []), *inside)
    with open(os.path.join(directory, "build.log"), "ab") as log:
        # A session of its own: neither the end of this login nor Ctrl-C reaches it.
        subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lock.file],
            cwd=directory,
        )
    return build


def _make_room(directory: str, need_mib: int) -> None:
    """Nothing of a build before is left: what a killed one had installed takes room. Raises Refusal
    where there is not enough of it then."""
    for name in ("ready", "env.json", "build.json", "build.log", gpu_check.PROOFS):
        remove_file(os.path.join(directory, name))
    for name in ("venv", "tmp"):
        shutil.rmtree(os.path.join(directory, name), ignore_errors=True)
    if need_mib:
        what = "the environment needs about"
        require_room(directory, need_mib << 20, MANY_FILES, what, "EnvironmentFailed")


def _end_leftovers(state: Dict[str, Any]) -> None:
    """A builder that was killed leaves its installer at work; it must not write into the next
    build."""
    pid = state.get("pid")
    if not isinstance(pid, int) or pid <= 1 or state.get("host") != os.uname().nodename:
        return
    if is_same(pid, state.get("pid_started")):
        return
    members = group_members(pid)
    # Else the number was given to others since then, or all are gone.
    if any(_is_in_directory(member, state) for member in members):
        for member in members:
            with contextlib.suppress(OSError):
                os.kill(member, signal.SIGKILL)


def _is_in_directory(pid: int, state: Dict[str, Any]) -> bool:
    """An installer of ours works in the environment's directory."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") == state.get("directory")
    except OSError:
        return False


def _lock_path(layout: Layout, key: str) -> str:
    return os.path.join(os.path.dirname(layout.environment(key)), f".{key}.lock")


def _is_building(layout: Layout, key: str) -> bool:
    if not os.path.exists(_lock_path(layout, key)):
        return False
    with contextlib.closing(Lock(_lock_path(layout, key))) as lock:
        return not lock.is_free()
