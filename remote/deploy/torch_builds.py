"""Which torch an environment gets and from where; and whether one that is there fits the GPUs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from remote.agent.shared.names import canonical
from remote.deploy import gpus
from remote.deploy.needs import Needs
from remote.errors import GpuUnfit
from remote.link.facts import Torch
from remote.records import GpuReport

TORCH_INDEX = "https://download.pytorch.org/whl"
CUDA_TORCH_MIB = 7 * 1024
CPU_TORCH_MIB = 1500
SMALL_MIB, PACKAGE_MIB = 200, 50


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
    if not gpus.build_fits(cuda, report):
        return f"{name} (CUDA {cuda}) does not fit {_about(report)}"
    return None


def choose_torch(needs: Needs, markers: Mapping[str, str]) -> dict[str, Any]:
    """The part `torch` of a plan: build and reason; index or links, and the lines that are
    installed from there, where it is not the build that pip takes by itself."""
    wanted = needs.settings.torch
    if not needs.needs_torch:
        return {}
    if wanted == "auto" and needs.names_torch_source:
        return {"build": "own", "reason": "from where the requirements or pip's settings say"}
    choice = gpus.TorchBuild(wanted, f"{wanted}, as remote.torch says")
    if wanted == "auto":
        choice = gpus.torch_build_for(needs.report, needs.known.facts.system.machine)
    if choice.problem:
        remedy = "ask for a newer driver, or set remote.torch: cpu to train on the CPU"
        raise GpuUnfit(choice.problem, step="environment", remedy=remedy)
    if choice.name is None:
        return {"build": "default", "reason": choice.reason}
    own = [one for one in needs.applicable(markers) if canonical(one.name) == "torch"]
    lines = [str(one) for one in own if not one.url] or ["torch"]
    if "torch" in needs.comes:
        # The newest that the other packages take: their index may hold one that they do not.
        lines.append(f"torch<={needs.comes['torch'].partition('+')[0]}")
    return source(needs, choice.name, lines) | {"reason": choice.reason}


def source(needs: Needs, build: str, lines: Sequence[str]) -> dict[str, Any]:
    """`lines` from the index, or with -f from the page of wheels, that has this build."""
    address = needs.settings.torch_index.strip() or TORCH_INDEX
    is_page = address.startswith("-f")
    address = address.removeprefix("-f").strip()
    if "{build}" in address:
        address = address.replace("{build}", build)
    elif not re.search(r"/(cu\d+|cpu|rocm[\d.]*|[\w.]+\.html)/?$", address):
        address = f"{address.rstrip('/')}/{build}"
    return {"links" if is_page else "index": address, "build": build, "requirements": list(lines)}


def of_the_family(version: str) -> str | None:
    """The build of a torch that is there, where its version tells it and an index has it."""
    tag = version.partition("+")[2]
    return tag if tag == "cpu" or tag.startswith(("cu", "rocm")) else None


def need_mib(needs: Needs, torch: Mapping[str, Any], missing: Collection[str] | None = None) -> int:
    """Room for an environment, or for `missing` alone on top of one that has torch."""
    if torch.get("build") and missing is None:
        return CPU_TORCH_MIB if torch["build"] == "cpu" else CUDA_TORCH_MIB
    count = len(needs.comes or needs.requirements.names) if missing is None else len(missing)
    return SMALL_MIB + PACKAGE_MIB * count


def _about(report: GpuReport) -> str:
    card = report.gpus[0]
    cap = gpus.capability(card)
    return f"driver {report.driver_version or '–'} and {card.name or 'the GPU'}" + (
        f" (compute capability {cap:.1f})" if cap else ""
    )
