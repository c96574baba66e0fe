"""What a training asks of Slurm: `remote.slurm` and the options of one run, as the lines of a job's
script. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from remote.agent.shared.run_records import SlurmJob
from remote.records import SlurmSettings

OURS = re.compile(
    r"--(job-name|output|error|open-mode|chdir|signal|(no-)?requeue|array|wrap|parsable|wait"
    r"|dependency|test-only)\b|-[JoeDadW]\b"
)
"""Options that we set ourselves, or that would make something else of one training."""
PLACE = ("partition", "account", "qos", "constraint")
UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_time(text: str) -> int:
    """As Slurm takes it: a minute at least. Raises ValueError."""
    total = parse_duration(text)
    if total < 60:
        raise ValueError(f"Slurm's shortest time limit is a minute, not {text!r:.40}")
    return total


def parse_duration(text: str) -> int:
    """Seconds, of 8h, 1h30m, 2d, 8:00:00 or 1-12:00:00. Raises ValueError for a number without a
    unit: Slurm counts it in minutes, and YAML makes 28800 of 8:00:00."""
    spoken = re.fullmatch(r"(?:\d+[dhms])+", text.strip().lower())
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text.strip())
    if spoken:
        total = sum(int(n) * UNITS[unit] for n, unit in re.findall(r"(\d+)([dhms])", spoken[0]))
    elif clock:
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        total = days * 86400 + hours * 3600 + minutes * 60 + seconds
    else:
        raise ValueError(f"a time is given as 8h, 30m, 1h30m or '08:00:00', not {text!r:.40}")
    return total


def extra_lines(text: str) -> list[str]:
    """With or without #SBATCH, one option each."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [re.sub(r"^#SBATCH\s+", "", line) for line in lines]


def slurm_problems(slurm: SlurmSettings) -> list[str]:
    errors = []
    for name in (*PLACE, "nodes", "mem", "cpus", "gres"):
        value = getattr(slurm, name)
        if re.search(r"[\s\x00-\x1f'\"]", value):
            errors.append(f"remote.slurm.{name} holds a blank or a quote: {value!r:.40}")
    if slurm.time:
        try:
            parse_time(slurm.time)
        except ValueError as error:
            errors.append(f"remote.slurm.time: {error}")
    if slurm.build not in ("login", "job"):
        errors.append(f"remote.slurm.build is login or job, not {slurm.build!r:.40}")
    for line in extra_lines(slurm.extra):
        if not line.startswith("-"):
            errors.append(f"remote.slurm.extra holds sbatch's options, not {line!r:.60}")
        elif OURS.match(line):
            errors.append(f"remote.slurm.extra: {line!r:.60} is not yours to set for a training")
    return errors


def gres_of(slurm: SlurmSettings, gpus: int | None) -> str:
    """With so many GPUs of the kind that the settings name; empty: none."""
    gres = "" if slurm.gres in ("", "none") else slurm.gres
    if gpus is None:
        return gres
    kind = re.sub(r":\d+$", "", gres or "gpu")
    return f"{kind}:{gpus}"


def node_options(slurm: SlurmSettings) -> list[str]:
    """What chooses a node with such GPUs, for a look at it; empty where none is asked for."""
    gres = gres_of(slurm, None)
    return _options(slurm, {"gres": gres}) if gres else []


def build_options(slurm: SlurmSettings) -> list[str]:
    """For a job that builds an environment where trainings run."""
    more = {"mem": slurm.mem, "cpus-per-task": slurm.cpus, "gres": gres_of(slurm, None)}
    return _options(slurm, more)


def job_request(
    slurm: SlurmSettings,
    time: str | None,
    gpus: int | None,
    wants_gpu: bool,
    nodes: int | None = None,
) -> SlurmJob:
    limit_s = parse_time(time or slurm.time) if time or slurm.time else None
    more = {
        "nodes": str(nodes) if nodes else slurm.nodes,
        "mem": slurm.mem,
        "cpus-per-task": slurm.cpus,
        "gres": gres_of(slurm, gpus) if wants_gpu else "",
        "time": clock(limit_s) if limit_s else "",
    }
    options = (*_options(slurm, more), *extra_lines(slurm.extra))
    return SlurmJob(options, tuple(slurm.preamble.splitlines()), limit_s)


def _options(slurm: SlurmSettings, more: Mapping[str, str]) -> list[str]:
    named = {name: getattr(slurm, name) for name in PLACE} | dict(more)
    return [f"--{name}={value}" for name, value in named.items() if value]


def clock(seconds: int) -> str:
    """As Slurm writes it."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02}:{minutes:02}:{rest:02}"
