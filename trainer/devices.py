"""Which devices a training uses, and what they are."""

from __future__ import annotations

import ctypes
import dataclasses
import sys

import torch

from trainer.config import TrainConfig
from trainer.options import EXIT_DEVICE, TrainError
from trainer.processes import host_count


@dataclasses.dataclass(frozen=True)
class Devices:
    """`indices`: of the GPUs as torch counts them; None on a CPU, where `count` is the number of
    processes. Both are one host's; each of `hosts` has as many."""

    accelerator: str
    count: int
    indices: tuple[int, ...] | None = None
    hosts: int = 1

    @property
    def world(self) -> int:
        return self.count * self.hosts

    def first(self) -> Devices:
        return Devices(self.accelerator, 1, self.indices and self.indices[:1])


def choose_devices(config: TrainConfig) -> Devices:
    """Raises TrainError where the GPU asked for is missing: nothing falls back to a CPU in
    silence."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.accelerator == "cpu" or (config.accelerator == "auto" and not available):
        processes = _limited(cpu_processes(config.devices), config.max_devices)
        return Devices("cpu", processes, hosts=host_count())
    if not available:
        raise TrainError(
            "torch sees no GPU (driver, or a build of torch for CPUs?); to train on the CPU all the"
            " same: --accelerator cpu",
            EXIT_DEVICE,
        )
    wanted = (
        tuple(range(available))
        if config.devices == "auto"
        else tuple(int(part) for part in config.devices.split(","))
    )
    missing = [index for index in wanted if index >= available]
    if missing or len(set(wanted)) < len(wanted):
        raise TrainError(
            f"--devices {config.devices}: torch sees GPUs 0 to {available - 1}, each may be named"
            " once",
            EXIT_DEVICE,
        )
    wanted = wanted[: _limited(len(wanted), config.max_devices)]
    return Devices("gpu", len(wanted), wanted, host_count())


def cpu_processes(devices: str) -> int:
    """`auto` is one; `2` and `0,1` are two."""
    if devices == "auto":
        return 1
    parts = devices.split(",")
    return len(parts) if len(parts) > 1 else max(1, int(parts[0]))


def _limited(count: int, limit: int) -> int:
    return min(count, limit) if limit else count


def limit_note(config: TrainConfig, devices: Devices) -> str | None:
    """What to say where more devices are named than the recipe uses; `auto` names none."""
    named = (
        cpu_processes(config.devices) if devices.indices is None else len(config.devices.split(","))
    )
    if named <= devices.count:
        return None
    return (
        f"{named} devices are named, {devices.count} used: recipe {config.recipe} has max_devices"
        f" {config.max_devices} (0: no limit)"
    )


def describe_devices(devices: Devices) -> list[str]:
    where = f" on each of {devices.hosts} hosts" if devices.hosts > 1 else ""
    if devices.indices is None:
        if devices.count > 1:  # Lightning shares the cores among them
            return [f"CPU, {devices.count} processes{where}"]
        return [f"CPU, {torch.get_num_threads()} threads{where}"]
    lines = [f"{devices.count} GPU(s){where}"]
    for index in devices.indices:
        about = torch.cuda.get_device_properties(index)
        lines.append(f"  gpu {index}: {about.name}, {about.total_memory / 2**30:.1f} GiB")
    return lines


def torch_device(devices: Devices) -> torch.device:
    return torch.device("cpu" if devices.indices is None else f"cuda:{devices.indices[0]}")


def keep_freed_memory() -> None:
    """glibc gives large blocks back when they are freed, and gets them anew, zeroed page by page,
    at every step: seconds of each minute of a training on a CPU."""
    if sys.platform == "linux":
        # mallopt(3): M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in bytes; musl's libc has none.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
        mallopt(-1, 2**31 - 1)
        mallopt(-3, 2**30)


def compile_wanted(config: TrainConfig, device: torch.device) -> bool:
    return config.compile == "true" or (config.compile == "auto" and device.type == "cuda")
