"""Which torch build fits a server's GPUs. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from remote.agent.shared.gpu_choice import TORCH_BUILDS, Choice, driver_major, fitting_build
from remote.errors import GpuUnfit
from remote.records import Gpu, GpuReport

# Where the driver is too old to tell the compute capability, the name does.
OLD_NAMES = (
    (r"\bV100|TITAN V\b|GV100", 7.0),
    (r"\bP100\b|GP100", 6.0),
    (r"\bP4\b|\bP40\b|GTX 10\d\d|TITAN Xp?\b|Quadro P", 6.1),
    (r"\bM40\b|\bM60\b|GTX 9\d\d|GTX TITAN X", 5.2),
    (r"\bK80\b", 3.7),
)


@dataclass(frozen=True)
class TorchBuild:
    """`name`: an index of download.pytorch.org/whl; None: the registry's default wheels. `problem`:
    nothing fits."""

    name: str | None
    reason: str
    problem: str | None = None


def capability(gpu: Gpu) -> float | None:
    if gpu.compute_capability is not None:
        return gpu.compute_capability
    return next((cap for pattern, cap in OLD_NAMES if re.search(pattern, gpu.name or "")), None)


def torch_build_for(report: GpuReport, machine: str) -> TorchBuild:
    """Which torch build a server's GPUs need. Without GPUs, or where the newest fits, the default
    wheels."""
    driver, caps = report.driver_version, list(map(capability, report.gpus))
    if not caps:
        return TorchBuild(None, "no GPU: default wheels")
    name = fitting_build(driver, caps)
    shown = ", ".join(sorted({"–" if cap is None else f"{cap:.1f}" for cap in caps}))
    about = f"driver {driver or '–'}, compute capability {shown}"
    newest = TORCH_BUILDS[0][0]
    if name == newest and machine in ("x86_64", "AMD64"):
        return TorchBuild(None, f"default wheels (CUDA 13) fit {about}")
    if name is not None:
        return TorchBuild(name, f"{name} fits {about}")
    major = driver_major(driver)
    if major is not None and major < TORCH_BUILDS[-1][1]:
        problem = f"driver {driver} is too old for any torch build (450 is the oldest that works)"
    elif fitting_build(None, caps) is None:
        problem = f"no torch build has kernels for all of these GPUs at once ({about})"
    else:
        problem = f"no torch build fits {about}: these GPUs need a newer driver"
    return TorchBuild(None, f"default wheels, though {problem}", problem)


def build_fits(cuda: str, report: GpuReport) -> bool:
    """Whether a torch with this CUDA version is likely to run here; unknown counts as fitting, the
    proof decides."""
    major, driver = driver_major(cuda) or 0, driver_major(report.driver_version)
    if driver is not None and driver < {13: 580, 12: 525, 11: 450}.get(major, 0):
        return False
    lowest = 7.5 if major == 13 else 0.0
    highest = 9.9 if major == 11 or cuda in ("12.6", "12.4", "12.1") else 99.0
    caps = map(capability, report.gpus)
    return all(lowest <= cap <= highest for cap in caps if cap is not None)


def gpu_error(choice: Choice, host: str | None = None) -> GpuUnfit:
    return GpuUnfit(
        choice.problem or "no GPU can be used", host=host, step="choose GPUs", remedy=choice.remedy
    )
