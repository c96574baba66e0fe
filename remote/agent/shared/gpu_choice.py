"""A server's GPUs as records, and the choice among them, on either end. Pure; imports on every
system."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Sequence, Tuple

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


class GpuProcess(NamedTuple):
    """What computes on a GPU; containers hide some or all of it."""

    pid: int | None
    name: str | None
    memory_mib: int | None
    user: str | None = None
    age_s: float | None = None


class Gpu(NamedTuple):
    """One GPU as nvidia-smi tells it; `index` is nvidia-smi's, `uuid` is what it is pinned by."""

    index: int  # type: ignore[assignment]  # in place of tuple's method
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


class GpuReport(NamedTuple):
    """The GPUs of one boot of one host. `found`: nvidia-smi is there; None: it was not asked.
    `problem`: why there are none, in one line, with its remedy."""

    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None
    found: bool | None = None
    problem: str | None = None
    remedy: str | None = None
    # nvidia-smi can't tell: there may be some all the same.
    fails: bool = False
    host: str | None = None
    boot_id: str | None = None


NOT_ASKED = GpuReport(problem="nvidia-smi was not asked")
NOBODY: Mapping[str, str] = {}


class Choice(NamedTuple):
    """The GPUs to use, or why there are none. `notes` says of each GPU passed over why."""

    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None
    remedy: str | None = None
    notes: tuple[str, ...] = ()


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
