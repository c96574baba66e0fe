"""The words in which a run's way is told, on both ends."""

from typing import Literal, NamedTuple, Optional

State = Literal["queued", "running", "finished", "failed", "stopped", "unknown"]
LIVE = ("queued", "running")
FINAL = ("finished", "failed", "stopped")
Finish = Literal["summary", "exit"]
"""By what a run counts as finished: our trainer's summary.json, or exit code 0."""
Cause = Literal[
    "cancelled",
    "disk full",
    "diverged",
    "exit code",
    "gpu memory",
    "host gone",
    "host lost",
    "host memory",
    "idle",
    "killed",
    "moved",
    "no summary",
    "node failed",
    "not started",
    "pid reused",
    "preempted",
    "rebooted",
    "scheduler",
    "stopped",
    "supervisor",
    "time limit",
]
"""Why an attempt ended that has not finished."""


class Outcome(NamedTuple):
    """How an attempt ended."""

    state: State
    reason: Optional[str] = None
    cause: Optional[Cause] = None
