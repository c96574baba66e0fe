"""Runs as Slurm's batch jobs: submitted from the login node, with nothing of ours left on it.

A job's name holds the attempt's token: whoever has lost sbatch's answer finds the job by it, and
no attempt is submitted twice. What a job may not have is the attempt: the supervisor that claims
its token first has it.
"""

import os
import re
import shlex
import time
from typing import Any, Dict, Optional

from remote.agent.launchers.seam import Job, Launched, Looked, claim, mark_path
from remote.agent.launchers.slurm_queue import PREFIX, ask, ask_about, find, forget, look_up, queue
from remote.agent.launchers.slurm_words import (
    SUBMITTED_S,
    Seen,
    is_over,
    tell,
    tell_end,
    tell_signal,
)
from remote.agent.root.calls import Refusal
from remote.agent.root.paths import read_json, write_json, write_whole
from remote.agent.root.run_json import load
from remote.agent.shared.run_records import Asked, RunDetail
from remote.agent.shared.states import FINAL, Outcome

SUBMIT_S = 60.0
LIMITED = ("MaxSubmit", "submit limit", "temporarily")
"""Refusals that time mends: so many jobs of one user and no more."""
UNKNOWN_S = float(os.environ.get("REMOTE_SLURM_UNKNOWN_S", "60"))
"""A job that is not found so long after its submission was never made."""
SETTLE_S = float(os.environ.get("REMOTE_SLURM_SETTLE_S", "30"))
"""From a job's end to our verdict: what its node has written may be slow to be seen here."""
STEPS_S = 90.0
"""Slurm looks at time limits so seldom that its signal may come this much early."""
SAVE_S = 60.0
"""What a trainer has to save, where nothing else was asked for."""


def start(job: Job) -> Launched:
    """Submit it, exactly once. Raises Refusal with Slurm's own words for what it refuses."""
    if find("sbatch") is None:
        remedy = "log in to the cluster's login node, or set remote.launcher: auto in fabric.yaml"
        raise Refusal("ServerUnfit", "remote.launcher is slurm, and there is no sbatch", remedy)
    known = job_of(job.directory, job.token) or _submit(job)
    if known is None:
        note = "Slurm's answer was lost: whether it has the job is looked up, and told by status"
        return Launched("slurm", note)
    return Launched("slurm", None, str(known["id"]))


def job_name(directory: str, token: str) -> str:
    return f"{PREFIX}{os.path.basename(directory)}-{token[:8]}"


def job_of(directory: str, token: str) -> Optional[Dict[str, Any]]:
    """What is kept of this attempt's submission."""
    kept: Optional[Dict[str, Any]] = read_json(os.path.join(directory, "job.json"))
    return kept if kept and kept.get("token") == token else None


def _submit(job: Job) -> Optional[Dict[str, Any]]:
    """None where it is not known whether Slurm has it: nothing is submitted on a guess."""
    name, tries = job_name(job.directory, job.token), _tries(job)
    if tries:
        row, answered = look_up(name)
        if row is not None:
            return _keep(job.directory, job.token, row.id)
        last = mark_path(job.directory, job.token, f".submit{tries}")
        if not answered or time.time() - os.path.getmtime(last) < UNKNOWN_S:
            return None
    # Of several who try at once, one submits.
    mark = mark_path(job.directory, job.token, f".submit{tries + 1}")
    if not claim(mark):
        return None
    script = os.path.join(job.directory, "job.sh")
    write_whole(script, render_script(job).encode("utf-8", "surrogateescape"))
    said = ask("sbatch", ["--parsable", script], SUBMIT_S)
    if said.code == 0:
        return _keep(job.directory, job.token, said.out.strip().splitlines()[-1].split(";")[0])
    if said.lost:
        return None
    os.unlink(mark)
    remedy = "see remote.slurm in fabric.yaml; `sinfo` there shows what the cluster has"
    limited = any(word in said.words for word in LIMITED)
    raise Refusal("GpuUnfit", f"Slurm refuses the job: {said.words}", remedy, limited=limited)


def _tries(job: Job) -> int:
    tries = 0
    while os.path.exists(mark_path(job.directory, job.token, f".submit{tries + 1}")):
        tries += 1
    return tries


def _keep(directory: str, token: str, number: str) -> Dict[str, Any]:
    name = job_name(directory, token)
    kept = {"id": number, "name": name, "token": token, "submitted": time.time()}
    write_json(os.path.join(directory, "job.json"), kept)
    return kept


def notice(asked: Asked) -> int:
    """Seconds before its time limit at which a training is told to save; at most half of it."""
    notice_s = max(120, int(asked.stop_s or SAVE_S) + 60)
    if asked.slurm.limit_s is not None:
        notice_s = min(notice_s, int(asked.slurm.limit_s) // 2)
    return max(1, notice_s)


def render_script(job: Job) -> str:
    """The job's script, which people may read: what was asked of Slurm, and the supervisor."""
    directory, slurm = job.directory, job.asked.slurm
    options = [
        f"--job-name={job_name(directory, job.token)}",
        f"--output={shlex.quote(os.path.join(directory, 'slurm.log').replace('%', '%%'))}",
        f"--chdir={shlex.quote(directory)}",
        "--open-mode=append",
        "--no-requeue",
        f"--signal=B:TERM@{notice(job.asked)}",
        *slurm.options,
    ]
    if slurm.after:
        options.append(f"--dependency=afterany:{slurm.after}")
    lines = [
        # `module` is known to a login shell alone.
        "#!/bin/bash -l",
        *(f"#SBATCH {option}" for option in options),
        *slurm.preamble,
        "exec " + " ".join(shlex.quote(word) for word in job.command),
    ]
    return "".join(re.sub(r"[\r\n]", " ", line) + "\n" for line in lines)


def look(directory: str, state: RunDetail, asked: Asked) -> Looked:
    """By our files and by what Slurm told last."""
    token = state.token
    kept = job_of(directory, token)
    fresh = kept is None or time.time() - float(kept["submitted"]) > SUBMITTED_S
    known = queue(os.path.dirname(directory), fresh)
    row = known.jobs.get(job_name(directory, token))
    if kept is None and row is not None:
        kept = _keep(directory, token, row.id)
    stopped = _stopped(directory, state)
    if kept is None:
        if stopped and known.problem is None:
            # Never submitted, or by a call whose answer is still to come: its job finds no attempt.
            return state, tell_end(None, "", stopped)
        return tell(state, Seen(time.time(), known, None)) or state, None
    job = str(kept["id"])
    told = tell(state, Seen(time.time(), known, row, job, float(kept["submitted"])))
    return (told, None) if told else _settle(directory, state, asked, job)


def _settle(directory: str, state: RunDetail, asked: Asked, job: str) -> Looked:
    """Once what the node has written has had its time to arrive."""
    recorded = load(RunDetail, directory)
    if recorded.state in FINAL:
        return recorded, None
    mark = mark_path(directory, state.token, ".over")
    claim(mark)
    stopped = _stopped(directory, state)
    young = time.time() - os.path.getmtime(mark) < SETTLE_S
    if young and not (stopped and state.state == "queued"):
        return state._replace(reason=f"job {job} has ended; its last words are waited for"), None
    if asked.is_trainer and os.path.exists(os.path.join(directory, "summary.json")):
        return state, Outcome("finished")
    try:
        row = ask_about(job)
    except OSError as problem:
        os.utime(mark)
        return state._replace(reason=f"Slurm does not answer ({problem}); as recorded"), None
    if row is not None and not is_over(row):
        # squeue leaves out what it is told to hide, and more while the controller starts.
        os.unlink(mark)
        return state, None
    return state, tell_end(row, job, stopped)


def _stopped(directory: str, state: RunDetail) -> Optional[str]:
    """By whom, in words."""
    who = (read_json(os.path.join(directory, "stop.json")) or {}).get("who")
    waited = " while it waited" if state.state == "queued" else ""
    return f"stopped by {who}{waited}" if who else None


def why_signalled(asked: Asked, started: float) -> Optional[Outcome]:
    """In a job whose supervisor was told to end, though nobody has stopped the run."""
    try:
        row = ask_about(os.environ.get("SLURM_JOB_ID", ""))
    except OSError:
        row = None
    limit_s = asked.slurm.limit_s
    end = None if limit_s is None else started + limit_s
    notice_s = float(notice(asked)) + STEPS_S
    return tell_signal(row, end, time.time(), notice_s)


def stop(directory: str, state: RunDetail) -> None:
    """A job that waits is cancelled. One that runs is told to end by a signal of its own: without
    Slurm's clock, which leaves 30 s to save."""
    kept = job_of(directory, state.token)
    if kept:
        job = str(kept["id"])
        ask("scancel", ["--state=PENDING", job])
        # Its supervisor reads stop.json too: nothing depends on the controller.
        ask("scancel", ["--signal=TERM", "--batch", job])
        forget(os.path.dirname(directory))


def attach(directory: str, state: RunDetail) -> str:
    kept = job_of(directory, state.token)
    srun = find("srun")
    if not kept or not srun:
        raise Refusal("RunFailed", f"{os.path.basename(directory)} has no job to go into")
    work = os.path.join(directory, "work")
    words = [srun, f"--jobid={kept['id']}", "--overlap", f"--chdir={work}", "--pty", "bash", "-i"]
    return "exec " + " ".join(shlex.quote(word) for word in words)
