"""The attempts of a run: a new one with a token of its own; what is kept of those that ended."""

import contextlib
import glob
import os
import time
from typing import Any, Dict, List

from remote.agent.launchers.slurm_words import AGAIN
from remote.agent.machine.processes import boot_id
from remote.agent.root.paths import random_name, write_json
from remote.agent.root.run_json import write_asked
from remote.agent.shared.run_records import Asked
from remote.agent.shared.states import Cause, Outcome

ATTEMPT = ("state", "reason", "cause", "exit_code", "host", "started", "ended")
"""What is kept of an attempt that has ended."""
MOVED: Cause = "moved"
GONE: Cause = "host gone"
"""Causes of an end that no supervisor tells."""


def new_token() -> str:
    """Names an attempt: a supervisor whose token is no longer the run's writes nothing."""
    return random_name(8)


def queued_state(**more: Any) -> Dict[str, Any]:
    """Of a new attempt."""
    return dict(
        more,
        state="queued",
        host=os.uname().nodename,
        boot_id=boot_id(),
        since=time.time(),
        token=new_token(),
    )


def past_attempts(state: Dict[str, Any]) -> List[Any]:
    """All that have ended, the one that `state` is about included; a run that was only moved here
    adds none."""
    attempts = state.get("attempts")
    known = list(attempts) if isinstance(attempts, list) else []
    if state.get("cause") != MOVED:
        known.append({key: state.get(key) for key in ATTEMPT})
    return known


def restarts_left(state: Dict[str, Any], asked: Asked) -> int:
    return asked.max_restarts - int(state.get("restarts") or 0)


def trainer_checkpoints(directory: str) -> List[str]:
    return glob.glob(os.path.join(glob.escape(directory), "checkpoints", "*.ckpt"))


def resumed(directory: str, asked: Asked) -> Asked:
    """What is asked of the next attempt: it goes on from the newest checkpoint where there is
    one. What a kill has left of the first one is none."""
    if trainer_checkpoints(directory) and asked.resume_argv:
        return asked._replace(argv=asked.resume_argv)
    return asked


def tell_restart(directory: str, state: Dict[str, Any], asked: Asked) -> None:
    """In the run's log. `state` is the next attempt's."""
    reason, most = state["attempts"][-1].get("reason"), asked.max_restarts
    line = f"supervisor: {reason}; restarting ({state['restarts']} of {most})\n"
    log = os.path.join(directory, "train.log")
    with contextlib.suppress(OSError), open(log, "ab", buffering=0) as file:
        file.write(line.encode("utf-8", "replace"))


def next_attempt(directory: str, ended: Dict[str, Any], asked: Asked) -> Dict[str, Any]:
    """Write down that another one is to be started, behind the job that has ended. Returns its
    state; from here on the old supervisor writes nothing."""
    state = queued_state(
        attempts=past_attempts(ended), restarts=int(ended.get("restarts") or 0) + 1
    )
    write_asked(directory, resumed(directory, asked))
    write_json(os.path.join(directory, "state.json"), state)
    tell_restart(directory, state, asked)
    return state


def settle(directory: str, state: Dict[str, Any], asked: Asked) -> Dict[str, Any]:
    """Write down how an attempt ended whose supervisor can't do so any more, as `verdict` says, for
    the scheduler forgets it."""
    verdict: Outcome = state.pop("verdict")
    ended = dict(state, ended=time.time(), waiting=None, **verdict.as_state())
    if verdict.cause in AGAIN and restarts_left(state, asked) > 0:
        return next_attempt(directory, ended, asked)
    ended["token"] = new_token()
    write_json(os.path.join(directory, "state.json"), ended)
    return ended


def after_job(asked: Asked) -> Asked:
    """The next attempt starts when this job has ended."""
    job = os.environ.get("SLURM_JOB_ID")
    return asked._replace(slurm=asked.slurm._replace(after=job)) if job else asked
