"""The attempts of a run: a new one with a token of its own; what is kept of those that ended."""

import contextlib
import glob
import os
import time
from typing import List, Tuple

from remote.agent.launchers.slurm_words import AGAIN
from remote.agent.machine.processes import boot_id
from remote.agent.root.paths import random_name
from remote.agent.root.run_json import save
from remote.agent.shared.run_records import Asked, Attempt, RunDetail
from remote.agent.shared.states import Cause, Outcome

MOVED: Cause = "moved"
GONE: Cause = "host gone"
"""Causes of an end that no supervisor tells."""


def new_token() -> str:
    """Names an attempt: a supervisor whose token is no longer the run's writes nothing."""
    return random_name(8)


def queued_state(attempts: Tuple[Attempt, ...] = (), restarts: int = 0) -> RunDetail:
    """Of a new attempt."""
    return RunDetail(
        state="queued",
        host=os.uname().nodename,
        boot_id=boot_id(),
        since=time.time(),
        token=new_token(),
        attempts=attempts,
        restarts=restarts,
    )


def past_attempts(state: RunDetail) -> Tuple[Attempt, ...]:
    """All that have ended, the one that `state` is about included; a run that was only moved here
    adds none."""
    if state.cause == MOVED:
        return state.attempts
    return (*state.attempts, Attempt(*(getattr(state, name) for name in Attempt._fields)))


def restarts_left(state: RunDetail, asked: Asked) -> int:
    return asked.max_restarts - state.restarts


def trainer_checkpoints(directory: str) -> List[str]:
    return glob.glob(os.path.join(glob.escape(directory), "checkpoints", "*.ckpt"))


def resumed(directory: str, asked: Asked) -> Asked:
    """What is asked of the next attempt: it goes on from the newest checkpoint where there is
    one. What a kill has left of the first one is none."""
    if trainer_checkpoints(directory) and asked.resume_argv:
        return asked._replace(argv=asked.resume_argv)
    return asked


def tell_restart(directory: str, state: RunDetail, asked: Asked) -> None:
    """In the run's log. `state` is the next attempt's."""
    reason, most = state.attempts[-1].reason, asked.max_restarts
    line = f"supervisor: {reason}; restarting ({state.restarts} of {most})\n"
    log = os.path.join(directory, "train.log")
    with contextlib.suppress(OSError), open(log, "ab", buffering=0) as file:
        file.write(line.encode("utf-8", "replace"))


def next_attempt(directory: str, ended: RunDetail, asked: Asked) -> RunDetail:
    """Write down that another one is to be started, behind the job that has ended. Returns its
    state; from here on the old supervisor writes nothing."""
    state = queued_state(past_attempts(ended), ended.restarts + 1)
    save(resumed(directory, asked), directory)
    save(state, directory)
    tell_restart(directory, state, asked)
    return state


def settle(directory: str, state: RunDetail, verdict: Outcome, asked: Asked) -> RunDetail:
    """Write down how an attempt ended whose supervisor can't do so any more, for the scheduler
    forgets it."""
    ended = state.ended_as(verdict, time.time())
    if verdict.cause in AGAIN and restarts_left(state, asked) > 0:
        return next_attempt(directory, ended, asked)
    ended = ended._replace(token=new_token())
    save(ended, directory)
    return ended


def after_job(asked: Asked) -> Asked:
    """The next attempt starts when this job has ended."""
    job = os.environ.get("SLURM_JOB_ID")
    return asked._replace(slurm=asked.slurm._replace(after=job)) if job else asked
