"""How an attempt ended, from all that can be seen of it. Reads nothing: what it needs stands in
`Ended`."""

import re
import signal
from typing import NamedTuple, Optional

from remote.agent.shared.states import Outcome

DIVERGED, DISK_FULL = 5, 7
"""The trainer's exit codes for a loss that became infinite, after all its ways back were used up,
and for a disk that took no more."""
FINAL_CODES = (2, 3, 4, DISK_FULL, DIVERGED)
"""Exit codes of the trainer that another try can't change."""
RESTARTED = ("gpu memory", "host memory", "killed", "exit code")
"""Causes that another try may mend."""
INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""How a program ends that somebody has interrupted; the last is our trainer's word for stopped."""
GPU_MEMORY = r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY"
NOBODY_ANSWERED = (
    "breakpoint() in the code, and nobody is there to answer: take it out, or answer it by"
    " train --interactive, or attach while it waits"
)
ERROR = re.compile(
    r"(\w+\.)*\w*(Error|Exception|Interrupt)\b|([\w.-]+: )?(error|fatal):", re.IGNORECASE
)
"""How a line begins that tells one: Python's, or a program's."""
NO_SPACE = r"No space left on device|Disk quota exceeded"


class Ended(NamedTuple):
    """`code`: the process's, negative for a signal. `tail`: the end of what it wrote in its log."""

    code: int
    is_trainer: bool
    has_summary: bool
    tail: str
    # Where the run's disk is mounted.
    mount: str
    # Who asked for its end, in words; and why we ended it for the disk's sake.
    stopped: Optional[str] = None
    disk_problem: Optional[str] = None
    # Where a scheduler or a limit of its own has ended it.
    scheduled: Optional[Outcome] = None
    # Ctrl-C was typed in its terminal.
    interrupted: bool = False
    # The kernel has killed something for want of memory meanwhile.
    kernel_killed: bool = False
    # Of a command of several lines the one that ran last.
    step: Optional[str] = None


def tell_outcome(ended: Ended) -> Outcome:
    # A command of one's own may well exit with 0 when it is stopped; only a summary says that all
    # was done.
    asked_to_end = ended.stopped or ended.disk_problem or ended.scheduled
    if ended.has_summary if ended.is_trainer else ended.code == 0 and not asked_to_end:
        return Outcome("finished")
    if ended.scheduled:
        return ended.scheduled
    if ended.stopped:
        return Outcome("stopped", ended.stopped, "stopped")
    if ended.disk_problem:
        reason = f"{ended.disk_problem}; it was stopped, its last checkpoint is kept"
        return Outcome("failed", reason, "disk full")
    if ended.interrupted and ended.code in INTERRUPTED:
        return Outcome("stopped", "interrupted with Ctrl-C in its terminal", "stopped")
    return tell_failure(ended)


def tell_failure(ended: Ended) -> Outcome:
    """Of an attempt that nobody has asked to end."""
    code, tail = ended.code, ended.tail
    if re.search(GPU_MEMORY, tail):
        return Outcome("failed", "out of memory on the GPU", "gpu memory")
    # The log may lie on that disk as well: then the code alone tells.
    if (ended.is_trainer and code == DISK_FULL) or (code and re.search(NO_SPACE, tail)):
        reason = f"the disk at {ended.mount} is full, or its quota is used up"
        return Outcome("failed", reason, "disk full")
    killed = code == -signal.SIGKILL or "killed by signal: Killed" in tail
    if killed and ended.kernel_killed:
        return Outcome("failed", "out of memory on the host: killed by the kernel", "host memory")
    if code < 0:
        return Outcome("failed", f"killed from outside ({signal_name(-code)})", "killed")
    because = last_words(tail)
    if ended.is_trainer and code == DIVERGED:
        return Outcome("failed", f"diverged{because}", "diverged")
    if code == 0:
        return Outcome("failed", f"it ended without a summary{because}", "no summary")
    step = f"{ended.step}: " if ended.step else ""
    return Outcome("failed", f"{step}exit code {code}{because}", "exit code")


def may_restart(ended: Ended, outcome: Outcome) -> bool:
    """Not after a wrong option, a missing image, a divergence, a full disk or a stop."""
    if ended.stopped or outcome.cause not in RESTARTED:
        return False
    return not ended.is_trainer or ended.code not in FINAL_CODES


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_words(tail: str) -> str:
    """What a person would quote: the last line that looks like an error, else the last one."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    if any(line.endswith("bdb.BdbQuit") for line in lines[-3:]):
        return f": {NOBODY_ANSWERED}"
    for line in reversed(lines[-200:]):
        if ERROR.match(line):
            return f": {line[:300]}"
    return f"; its last line: {lines[-1][:300]}" if lines else ""
