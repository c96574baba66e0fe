"""What a job's state means for its run. Pure: what it needs stands in `Seen`."""

from typing import NamedTuple, Optional

from remote.agent.launchers.slurm_queue import JobRow, Queue
from remote.agent.shared.run_records import RunDetail
from remote.agent.shared.states import Outcome

SUBMITTED_S = 5.0
"""A job that starts at once is not asked about: its supervisor tells."""
SILENT_S = 180.0
"""A heartbeat older than this says that a node may be down."""

REASONS = {
    "None": "Slurm has not looked at it yet",
    "Resources": "its resources are in use",
    "Priority": "others are before it",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "PartitionTimeLimit": "its time limit is above the partition's: it can never start",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows: it can never start",
    "JobHeldUser": "it is held; `scontrol release` lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "BeginTime": "its begin time has not come",
    "Dependency": "another job must end first",
    "DependencyNeverSatisfied": "the job that it waits for has failed: it can never start",
    "ReqNodeNotAvail": "a node that it needs is down, drained or reserved",
    "JobArrayTaskLimit": "so many of its array may not run at once",
    "QOSMaxWallDurationPerJobLimit": "its time limit is above the QOS's: it can never start",
    "QOSMaxGRESPerUser": "the QOS gives you no more GPUs at once",
    "QOSMaxSubmitJobPerUserLimit": "the QOS lets you submit no more jobs",
    "AssocGrpGRES": "the account gives no more GPUs at once",
    "AssocGrpCPUMinutesLimit": "the account's computing time is used up",
    "InvalidAccount": "the account is not valid: it can never start",
    "InvalidQOS": "the QOS is not valid: it can never start",
    "BadConstraints": "no node can ever give what it asks for",
    "NodeDown": "a node that it needs is down",
    "Licenses": "a licence is in use",
    "Reservation": "it waits for its reservation",
}
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING", "COMPLETING")
ENDS = {
    "TIMEOUT": Outcome(
        "failed", "its time limit was reached before it could save and end", "time limit"
    ),
    "DEADLINE": Outcome("failed", "its deadline was reached", "time limit"),
    "NODE_FAIL": Outcome("failed", "its node failed", "node failed"),
    "BOOT_FAIL": Outcome("failed", "its node did not boot", "node failed"),
    "PREEMPTED": Outcome("failed", "it was preempted by a job of higher priority", "preempted"),
    "OUT_OF_MEMORY": Outcome("failed", "out of memory on its node: killed by Slurm", "host memory"),
}
AGAIN = ("time limit", "preempted", "node failed")
"""Causes after which another attempt is worth its place in the queue."""


class Seen(NamedTuple):
    """`row`: the job in the queue, or None. `submitted`: when, with its number `job`."""

    now: float
    queue: Queue
    row: Optional[JobRow]
    job: Optional[str] = None
    submitted: Optional[float] = None


def is_over(row: JobRow) -> bool:
    return row.state not in WAITING and row.state not in RUNNING


def tell(state: RunDetail, seen: Seen) -> Optional[RunDetail]:
    """The recorded state, with why it waits or what is strange about it; None where the job is at
    its end, or gone."""
    row, queued = seen.row, state.state == "queued"
    if seen.queue.problem is not None:
        why = f"Slurm does not answer ({seen.queue.problem})"
        if queued:
            return state._replace(waiting=f"waits: {why}")
        return state._replace(reason=f"{why}; as recorded")
    if seen.job is None:
        return state._replace(waiting="waits for Slurm to confirm that it was submitted")
    young = seen.now - (seen.submitted or 0.0) < SUBMITTED_S
    if row is None:
        old = (seen.queue.answered or 0.0) <= (seen.submitted or 0.0)
        return state._replace(reason=f"job {seen.job} was submitted") if old or young else None
    if row.state in WAITING:
        waiting = "" if young else _waiting(row, seen.now)
        return state._replace(waiting=waiting) if queued else state
    if is_over(row):
        return None
    if queued:
        return state._replace(reason=f"job {row.id} starts on {row.nodes or 'its node'}")
    beat = state.heartbeat
    if beat is not None and seen.now - beat > SILENT_S:
        silent = f"nothing was heard of it for {(seen.now - beat) / 60:.0f} min"
        return state._replace(reason=f"{silent}: its node {row.nodes} may be down")
    return state


def _waiting(row: JobRow, now: float) -> str:
    if row.state == "CONFIGURING":
        return f"waits for {row.nodes or 'its node'} to boot (job {row.id})"
    known = REASONS.get(row.reason.split(",")[0].strip("()"), "")
    why = f"{known} ({row.reason})" if known else row.reason or "Slurm tells no reason"
    soon = row.start - now if row.start else 0.0
    when = f"; expected to start in about {_about(soon)}" if soon > 0 else ""
    return f"waits in Slurm's queue as job {row.id}: {why}{when}"


def _about(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 120 else f"{round(minutes / 60)} h"


def tell_end(row: Optional[JobRow], job: str, stopped: Optional[str]) -> Outcome:
    """How a run ended whose supervisor did not tell."""
    if stopped:
        return Outcome("stopped", stopped, "stopped")
    if row is None:
        return Outcome("failed", f"the scheduler no longer knows its job {job}", "scheduler")
    state = row.state.split()[0].rstrip("+")
    if state == "CANCELLED":
        return Outcome("stopped", f"job {job} was cancelled", "cancelled")
    if state in ENDS:
        return ENDS[state]
    if row.exit_code == "0:53":
        why = f"its directory can't be written on {row.nodes or 'its node'}"
        return Outcome("failed", why, "not started")
    told = f"{state}, exit code {row.exit_code}" if row.exit_code else state
    where = f" on {row.nodes}" if row.nodes else ""
    why = f"its supervisor was killed{where} (job {job}: {told})"
    return Outcome("failed", why, "killed")


def tell_signal(
    row: Optional[JobRow], end: Optional[float], now: float, notice_s: float
) -> Optional[Outcome]:
    """The end of a training that Slurm has told to end; None: somebody else did.

    `end`: when its time is over, where Slurm can't be asked.
    """
    state = row.state if row else "RUNNING"
    if state == "CANCELLED":
        return Outcome("stopped", "its job was cancelled", "cancelled")
    if state in ENDS:
        return ENDS[state]
    end = row.end if row and row.end else end
    if end is not None and end - now <= notice_s:
        return Outcome("failed", "its time limit is over; it was told to save", "time limit")
    return None
