"""Which torch an environment gets and from where; and whether one that is there fits the GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from remote.agent.shared.build_plan import NO_TORCH, TorchChoice
from remote.agent.shared.environment import Torch
from remote.agent.shared.gpu_choice import TORCH_BUILDS, driver_major, fitting_build, lowest_driver
from remote.agent.shared.names import canonical
from remote.deploy.needs import Needs
from remote.errors import GpuUnfit
from remote.records import Gpu, GpuReport

TORCH_INDEX = "https://download.pytorch.org/whl"
CUDA_TORCH_MIB = 7 * 1024
CPU_TORCH_MIB = 1500
KEPLER = re.compile(r"\bK(10|20|40|80)[a-z]?\b")
"""A driver too old to tell the compute capability carries no CUDA that other names are too old
for."""


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
    return 3.7 if KEPLER.search(gpu.name or "") else None


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
    major, lowest_major = cuda.partition(".")[0], lowest_driver(cuda)
    if (driver_major(report.driver_version) or lowest_major) < lowest_major:
        return False
    lowest = 7.5 if major == "13" else 0.0
    highest = 9.9 if major == "11" or cuda in ("12.6", "12.4", "12.1") else 99.0
    caps = map(capability, report.gpus)
    return all(lowest <= cap <= highest for cap in caps if cap is not None)


def torch_problem(torch: Torch, wanted: str, report: GpuReport) -> str | None:
    """Why an installed torch won't do for what remote.torch says and for the GPUs there; None if it
    may."""
    name, cuda = f"torch {torch.version or '–'}", torch.cuda
    if wanted == "cpu" or torch == Torch():
        return None
    if wanted.startswith("cu") and wanted != (cuda and "cu" + cuda.replace(".", "")):
        built = f"CUDA {cuda}" if cuda else "the CPU"
        return f"{name} is a build for {built}, and remote.torch is {wanted}"
    if not report.gpus or torch.hip:
        return None
    if not cuda:
        return f"{name} is a CPU build"
    if not build_fits(cuda, report):
        return f"{name} (CUDA {cuda}) does not fit {_about(report)}"
    return None


def choose_torch(needs: Needs, markers: Mapping[str, str]) -> TorchChoice:
    wanted = needs.settings.torch
    if not needs.needs_torch:
        return NO_TORCH
    if wanted == "auto" and needs.names_torch_source(markers):
        return TorchChoice("own", "from where the requirements or pip's settings say")
    choice = TorchBuild(wanted, f"{wanted}, as remote.torch says")
    if wanted == "auto":
        choice = torch_build_for(needs.report, needs.known.facts.system.machine)
    if choice.problem:
        remedy = "ask for a newer driver, or set remote.torch: cpu to train on the CPU"
        raise GpuUnfit(choice.problem, step="environment", remedy=remedy)
    if choice.name is None:
        return TorchChoice("default", choice.reason)
    own = [one for one in needs.applicable(markers) if canonical(one.name) == "torch"]
    lines = [public(str(one)) for one in own if not one.url] or ["torch"]
    if "torch" in needs.comes and not needs.is_lock:
        # The newest that the other packages take: their index may hold one that they do not.
        lines.append(f"torch<={needs.comes['torch'].partition('+')[0]}")
    return source(needs, choice.name, lines)._replace(reason=choice.reason)


def public(line: str) -> str:
    """torch==2.7.1+cu118 stands on torch's own index alone; what it brings does not depend on the
    build."""
    return line if "@" in line else re.sub(r"(==[^,+]+)\+[^,\s]+", r"\1", line)


def source(needs: Needs, build: str, lines: Sequence[str]) -> TorchChoice:
    """`lines` from the index, or with -f from the page of wheels, that has this build."""
    address = needs.settings.torch_index.strip() or TORCH_INDEX
    is_page = address.startswith("-f")
    address = address.removeprefix("-f").strip()
    if "{build}" in address:
        address = address.replace("{build}", build)
    elif not re.search(r"/(cu\d+|cpu|rocm[\d.]*|[\w.]+\.html)/?$", address):
        address = f"{address.rstrip('/')}/{build}"
    links, index_url = (address, "") if is_page else ("", address)
    return TorchChoice(build, index_url=index_url, links=links, requirements=lines)


def of_the_family(version: str) -> str | None:
    """The build of a torch that is there, where its version tells it and an index has it."""
    tag = version.partition("+")[2]
    return tag if tag == "cpu" or tag.startswith(("cu", "rocm")) else None


def need_mib(torch: TorchChoice) -> int:
    """Room for an environment with it; 0 without: it may be small, and the disk itself tells."""
    if not torch.build:
        return 0
    return CPU_TORCH_MIB if torch.build == "cpu" else CUDA_TORCH_MIB


def _about(report: GpuReport) -> str:
    card = report.gpus[0]
    cap = capability(card)
    return f"driver {report.driver_version or '–'} and {card.name or 'the GPU'}" + (
        f" (compute capability {cap:.1f})" if cap else ""
    )
