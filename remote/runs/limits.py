"""Ends that are asked for in advance: of a run by --time and --stop-if-idle, of the server by
--shutdown-after."""

from __future__ import annotations

from remote.project.options import RunOptions
from remote.project.slurm import parse_duration, parse_time
from remote.records import Settings

GRACE, UNFETCHED = "30m", "24h"


def limits_of(options: RunOptions, launcher: str) -> tuple[int, int]:
    """The longest that it may go and be idle, in seconds, 0: no limit; Slurm holds a job's time
    limit itself. Raises ValueError that names the option."""
    by_slurm = launcher == "slurm"
    limit_s = _seconds("time", options.time, by_slurm) if options.time else 0
    idle_s = _seconds("stop-if-idle", options.stop_if_idle) if options.stop_if_idle else 0
    return 0 if by_slurm else limit_s, idle_s


def shutdown_of(
    after: str | bool | None, keep_unfetched: str | None, settings: Settings
) -> dict[str, int | str] | None:
    """For the agent's plan; None: none is asked for. `after`: True is the option alone. Raises
    ValueError that names the option."""
    if not after:
        if keep_unfetched:
            raise ValueError("--keep-unfetched belongs to --shutdown-after")
        return None
    if settings.launcher == "slurm":
        raise ValueError("--shutdown-after: a cluster's nodes are not yours to shut down")
    return {
        "grace_s": _seconds("shutdown-after", GRACE if after is True else after),
        "unfetched_s": _seconds("keep-unfetched", keep_unfetched or UNFETCHED),
        "command": settings.shutdown,
    }


def _seconds(option: str, text: str, by_slurm: bool = False) -> int:
    try:
        return parse_time(text) if by_slurm else parse_duration(text)
    except ValueError as error:
        raise ValueError(f"--{option}: {error}") from None
