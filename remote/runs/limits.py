"""Ends that are asked for in advance: --time and --stop-if-idle."""

from __future__ import annotations

from remote.project.slurm import parse_duration, parse_time


def limits_of(time: str | None, stop_if_idle: str | None, launcher: str) -> dict[str, int]:
    """For run.json, in seconds; Slurm holds a job's time limit itself. Raises ValueError that names
    the option."""
    limits: dict[str, int] = {}
    for name, option, text in (("limit_s", "time", time), ("idle_s", "stop-if-idle", stop_if_idle)):
        by_slurm = launcher == "slurm" and name == "limit_s"
        if text:
            try:
                seconds = parse_time(text) if by_slurm else parse_duration(text)
            except ValueError as error:
                raise ValueError(f"--{option}: {error}") from None
            limits |= {} if by_slurm else {name: seconds}
    return limits
