"""Reads what nvidia-smi said, and chooses GPUs, on either end. Pure; imports on every system."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import Any, Iterable, Mapping, Sequence, Tuple

from remote.agent.shared.states import LIVE
from remote.agent.shared.text import one_line

TORCH_BUILDS: Tuple[Tuple[str, int, float, float], ...] = (
    ("cu130", 580, 7.5, 99.0),
    ("cu128", 570, 7.5, 12.0),
    ("cu126", 525, 5.0, 9.0),
    ("cu118", 450, 5.0, 9.0),
)
"""Index name, lowest driver, lowest and highest compute capability. Newest first."""
LOWEST_DRIVERS = {"13": 580, "12": 525, "11": 450}

BUSY_MIB = 500
"""An idle GPU holds up to this much: the driver's own share, and a desktop's."""
BUSY_PERCENT = 5
MAX_GPUS = 256
MAX_PROCESSES = 1000

EXIT_REASONS = {
    6: (
        "nvidia-smi finds no GPU",
        "is one assigned to this machine or container (docker run --gpus all)?",
    ),
    9: (
        "the NVIDIA driver is not loaded",
        "ask the server's administrator to load or reinstall it (modprobe nvidia)",
    ),
    15: ("a GPU has fallen off the bus", "only a reboot of the server brings it back"),
    18: (
        "the NVIDIA driver and its library have different versions",
        "ask the server's administrator to reboot it; an update replaced one of them",
    ),
}
SAID = (
    ("version mismatch", 18),
    ("couldn't communicate with the nvidia driver", 9),
    ("gpu is lost", 15),
    ("no devices were found", 6),
)


@dataclass(frozen=True)
class GpuProcess:
    """What computes on a GPU; containers hide some or all of it."""

    pid: int | None
    name: str | None
    memory_mib: int | None
    user: str | None = None
    age_s: float | None = None


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi tells it; `index` is nvidia-smi's, `uuid` is what it is pinned by."""

    index: int
    uuid: str
    name: str | None = None
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    utilization_percent: int | None = None
    # Such as 8.6; unknown to drivers before 510.
    compute_capability: float | None = None
    # True where the GPU is split into instances.
    mig: bool | None = None
    power_w: float | None = None
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True)
class GpuReport:
    """A server's GPUs. `found`: nvidia-smi is there. `problem`: why there are none, in one line,
    with its remedy."""

    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    found: bool | None = None
    problem: str | None = None
    remedy: str | None = None


NOBODY: Mapping[str, str] = {}


@dataclass(frozen=True)
class Choice:
    """The GPUs to use, or why there are none. `notes` says of each GPU passed over why."""

    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None
    remedy: str | None = None
    notes: tuple[str, ...] = ()


def parse_gpus(raw: Mapping[str, Any]) -> GpuReport:
    """From the agent's `query_gpus`. Never raises; a cell that is no number or name is None."""
    if not raw or raw.get("found") is None:
        return GpuReport(problem="nvidia-smi was not asked or has not answered")
    if not raw.get("found"):
        return GpuReport(
            found=False, problem="no nvidia-smi on the server: no NVIDIA GPU, or no driver"
        )
    answer = _mapping(raw.get("gpus"))
    problem, remedy = _failure(answer)
    if problem:
        return GpuReport(found=True, problem=problem, remedy=remedy)
    processes = parse_processes(_mapping(raw.get("apps")), _mapping(raw.get("pids")))
    rows = _rows(answer, MAX_GPUS)
    parsed = [_gpu(row, processes) for row in rows]
    # Pinning goes by uuid: what has none, or the same twice, is garbage and not a GPU.
    gpus = {gpu.uuid: gpu for gpu in parsed if gpu is not None}
    driver = next(
        (
            cell
            for cell in (_text(row.get("driver_version")) for row in rows)
            if driver_major(cell) is not None
        ),
        None,
    )
    if not gpus:
        said = one_line(str(answer.get("output") or answer.get("error") or "nothing"), 120)
        return GpuReport(
            found=True,
            driver_version=driver,
            problem=f"nvidia-smi lists no usable GPU; it said: {said}",
        )
    return GpuReport(gpus=tuple(gpus.values()), driver_version=driver, found=True)


def parse_processes(
    answer: Mapping[str, Any], pids: Mapping[str, Any]
) -> dict[str, list[GpuProcess]]:
    """GPU uuid → what computes on it, with its user and age where the server could tell."""
    found: dict[str, list[GpuProcess]] = {}
    if answer.get("exit") != 0:
        return found
    for row in _rows(answer, MAX_PROCESSES):
        uuid = _text(row.get("gpu_uuid"))
        if uuid is None:
            continue
        pid = _number(row.get("pid"))
        seen = _mapping(pids.get(str(int(pid)))) if pid is not None else {}
        age = seen.get("age_s")
        process = GpuProcess(
            pid=None if pid is None else int(pid),
            name=_process_name(row.get("process_name")),
            memory_mib=_whole(row.get("used_memory")),
            user=one_line(str(seen["user"]), 40) if seen.get("user") else None,
            age_s=(
                float(age) if isinstance(age, (int, float)) and not isinstance(age, bool) else None
            ),
        )
        found.setdefault(uuid, []).append(process)
    return found


def choose_gpus(
    gpus: Sequence[Gpu], devices: str = "auto", limit: int = 0, held: Mapping[str, str] = NOBODY
) -> Choice:
    """`auto`: every GPU that is seen to be free, at most `limit` (0: no limit).

    Indices are taken as given, busy or not, if they exist and can be pinned. `held`: UUIDs that
    live runs of this project were given, which may not show on the GPU yet, and their runs.
    """
    if devices != "auto":
        return _choose_named(gpus, devices, held)
    if not gpus:
        return Choice(problem="the server has no GPU", remedy="see fab -H … check-gpu")
    reasons = [(gpu, unusable_reason(gpu) or busy_reason(gpu, held)) for gpu in gpus]
    free = tuple(gpu for gpu, reason in reasons if reason is None)
    notes = tuple(f"gpu {gpu.index}: {reason}" for gpu, reason in reasons if reason is not None)
    if free:
        return Choice(gpus=free[: limit or None], notes=notes)
    indices = ",".join(str(gpu.index) for gpu in gpus)
    return Choice(
        problem=f"no GPU is free: {'; '.join(notes)}",
        remedy=f"wait, or name one: --devices {indices}",
        notes=notes,
    )


def _choose_named(gpus: Sequence[Gpu], devices: str, held: Mapping[str, str]) -> Choice:
    by_index = {gpu.index: gpu for gpu in gpus}
    has = ", ".join(str(index) for index in sorted(by_index)) or "none"
    remedy = f"the server's GPUs are: {has}; see fab -H … check-gpu"
    names = [name.strip() for name in devices.split(",")]
    if not all(name.isascii() and name.isdigit() and len(name) < 6 for name in names):
        return Choice(
            problem=f"--devices must be auto or indices such as 0,1, not {one_line(devices, 60)}",
            remedy=remedy,
        )
    wanted = [int(name) for name in names]
    twice = sorted({index for index in wanted if wanted.count(index) > 1})
    missing = [index for index in wanted if index not in by_index]
    problems = [f"gpu {index} is named twice" for index in twice] + [
        f"there is no gpu {index}" for index in missing
    ]
    chosen = tuple(by_index[index] for index in wanted if index in by_index)
    problems += [f"gpu {gpu.index}: {reason}" for gpu in chosen if (reason := unusable_reason(gpu))]
    if problems:
        return Choice(problem="; ".join(problems), remedy=remedy)
    notes = tuple(
        f"gpu {gpu.index} is not free: {reason}"
        for gpu in chosen
        if (reason := busy_reason(gpu, held))
    )
    return Choice(gpus=chosen, notes=notes)


def unusable_reason(gpu: Gpu) -> str | None:
    if gpu.mig:
        return "it is split by MIG, whose parts we don't pin; ask for it whole, or choose another"
    return None


def held_gpus(runs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """UUID → run, for the runs that have not ended."""
    live = [run for run in runs if run.get("state") in LIVE and isinstance(run.get("gpus"), list)]
    return {str(uuid): str(run.get("run")) for run in live for uuid in run["gpus"]}


def busy_reason(gpu: Gpu, held: Mapping[str, str] = NOBODY) -> str | None:
    """Why a GPU must be taken for busy; None if it is seen to be free. Containers hide processes,
    so memory counts too."""
    if gpu.processes:
        return "; ".join(describe_process(process) for process in gpu.processes[:3])
    if gpu.uuid in held:
        return f"the run {one_line(held[gpu.uuid], 60)} has it"
    used, total = gpu.memory_used_mib, gpu.memory_total_mib
    if used is None:
        return "its memory use is unknown"
    if used > max(BUSY_MIB, 0.01 * (total or 0)):
        return f"{describe_mib(used)} in use by processes that can't be seen"
    if gpu.utilization_percent is not None and gpu.utilization_percent > BUSY_PERCENT:
        return f"{gpu.utilization_percent}% busy with processes that can't be seen"
    return None


def describe_process(process: GpuProcess) -> str:
    """user wang, python, 18.2 GiB, since 2 h"""
    who = (
        f"user {process.user}"
        if process.user
        else f"pid {process.pid}"
        if process.pid is not None
        else "somebody"
    )
    parts = [who, process.name or "–"]
    if process.memory_mib is not None:
        parts.append(describe_mib(process.memory_mib))
    if process.age_s is not None:
        hours = process.age_s / 3600
        parts.append(
            "since " + (f"{hours:.0f} h" if hours >= 1 else f"{process.age_s / 60:.0f} min")
        )
    return ", ".join(parts)


def describe_mib(mib: int) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib} MiB"


def fitting_build(driver: str | None, capabilities: Sequence[float | None]) -> str | None:
    """The newest torch build that this driver carries and that has kernels for all these GPUs; None
    if there is none.

    An unknown driver or capability excludes nothing.
    """
    known = [cap for cap in capabilities if cap is not None]
    major = driver_major(driver)
    for name, lowest_driver, lowest, highest in TORCH_BUILDS:
        if (major is None or major >= lowest_driver) and all(
            lowest <= cap <= highest for cap in known
        ):
            return name
    return None


def lowest_driver(cuda: str) -> int:
    """The oldest that carries this version of CUDA; 0 where that is not known."""
    return LOWEST_DRIVERS.get(cuda.partition(".")[0], 0)


def driver_major(driver: str | None) -> int | None:
    first = str(driver or "").split(".")[0]
    return int(first) if first.isascii() and first.isdigit() and len(first) < 6 else None


def _failure(answer: Mapping[str, Any]) -> tuple[str | None, str | None]:
    if answer.get("timed_out"):
        seconds = answer.get("seconds")
        waited = f" within {seconds:.0f} s" if isinstance(seconds, (int, float)) else ""
        return (
            f"nvidia-smi does not answer{waited}",
            "a GPU or its driver hangs; often only a reboot of the server helps",
        )
    code = answer.get("exit")
    if code == 0:
        return None, None
    said = f"{answer.get('output') or ''} {answer.get('error') or ''}".strip()
    known = (
        code
        if code in EXIT_REASONS
        else next((number for words, number in SAID if words in said.lower()), None)
    )
    quoted = one_line(said, 200)
    if known is not None:
        reason, remedy = EXIT_REASONS[known]
        return f"{reason} (nvidia-smi: exit {code}{', ' + quoted if quoted else ''})", remedy
    return (
        f"nvidia-smi failed with exit code {code}: {quoted or 'it said nothing'}",
        "run nvidia-smi there by hand",
    )


def _rows(answer: Mapping[str, Any], limit: int) -> list[dict[str, str]]:
    fields = (
        [str(name) for name in answer.get("fields") or ()]
        if isinstance(answer.get("fields"), (list, tuple))
        else []
    )
    output = answer.get("output")
    if not fields or not isinstance(output, str):
        return []
    lines = [line for line in output.replace("\0", "").splitlines() if line.strip()][:limit]
    rows = []
    for line in lines:
        try:
            cells = next(csv.reader([line], skipinitialspace=True), [])
        except csv.Error:
            continue
        if len(cells) == len(fields):
            rows.append({name: cell.strip() for name, cell in zip(fields, cells)})
    return rows


def _gpu(row: Mapping[str, str], processes: Mapping[str, Sequence[GpuProcess]]) -> Gpu | None:
    uuid, index = _text(row.get("uuid")), _whole(row.get("index"))
    if uuid is None or index is None or not re.fullmatch(r"(GPU|MIG)-[0-9A-Za-z/-]{1,80}", uuid):
        return None
    cap = _number(row.get("compute_cap"))
    mig = (_text(row.get("mig.mode.current")) or "").lower()
    return Gpu(
        index=index,
        uuid=uuid,
        name=_text(row.get("name")),
        memory_total_mib=_whole(row.get("memory.total")),
        memory_used_mib=_whole(row.get("memory.used")),
        utilization_percent=_whole(row.get("utilization.gpu")),
        compute_capability=cap if cap is not None and 1 <= cap < 100 else None,
        mig={"enabled": True, "disabled": False}.get(mig),
        power_w=_number(row.get("power.draw")),
        processes=tuple(processes.get(uuid, ())),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(cell: str | None) -> str | None:
    """None for an empty cell and for `[N/A]`, `[Not Supported]`, `[Unknown Error]`, `ERR!` and
    their like."""
    plain = one_line(cell or "", 200)
    if not plain or plain.startswith("[") or plain in ("ERR!", "N/A", "Unknown Error"):
        return None
    return plain


def _number(cell: str | None) -> float | None:
    plain = (_text(cell) or "").replace(" MiB", "").replace(" %", "")
    return float(plain) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", plain) else None


def _whole(cell: str | None) -> int | None:
    number = _number(cell)
    return None if number is None else int(number)


def _process_name(cell: str | None) -> str | None:
    """`/home/wang/venv/bin/python` is shown as `python`."""
    plain = _text(cell)
    return one_line(plain.rsplit("/", 1)[-1], 40) if plain else None
