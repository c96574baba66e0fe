"""What an environment must have, and for which GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote.agent.shared.names import canonical
from remote.link.answers import Inspection, Resolution
from remote.link.facts import Facts, Interpreter
from remote.records import GpuReport, Settings
from remote.requirements.lines import requirements_hash
from remote.requirements.parsed import Requirements, applicable, parse_requirements

if TYPE_CHECKING:
    from packaging.requirements import Requirement

TORCH_FAMILY = ("torch", "torchvision", "torchaudio")
"""Made for each other: they come from one index, and none of them is replaced alone."""
MODULES = {name: name for name in (*TORCH_FAMILY, "torchmetrics", "lightning")} | {
    "pytorch-lightning": "pytorch_lightning"
}
"""What is imported to prove an environment; each of them brings torch along."""


@dataclass(frozen=True)
class Needs:
    settings: Settings
    requirements: Requirements
    requirements_hash: str
    report: GpuReport
    machine: str
    # pip there was told to ask no index.
    offline: bool = False
    # What pip or uv there said that the requirements bring along; None: not asked yet.
    resolution: Resolution | None = None
    # When it was asked to be made anew, by the server's clock; empty: it was not.
    refreshed: str = ""

    @property
    def comes(self) -> Mapping[str, str]:
        """Canonical name → version of all that will be installed; empty where it is not known."""
        return (self.resolution.packages if self.resolution else None) or {}

    @property
    def names_torch_source(self) -> bool:
        """The requirements (or pip's settings there) say themselves which build of torch it is, or
        that it comes from an index of theirs."""
        own = any(
            option == "--no-index"
            or ("index-url" in option and re.search(r"/whl/|pytorch", option))
            for option in self.requirements.options
        )
        torch = [line for line in self.requirements.lines if canonical(line.name) == "torch"]
        return self.offline or own or any(line.url or "+" in str(line.specifier) for line in torch)

    @property
    def needs_torch(self) -> bool:
        return "torch" in self.comes or any(name in MODULES for name in self.requirements.names)

    @property
    def wanted(self) -> dict[str, str]:
        return {"python": self.settings.python, "torch": self.settings.torch}

    def applicable(self, markers: Mapping[str, str]) -> list[Requirement]:
        return applicable(self.requirements.lines, markers)


@dataclass(frozen=True)
class Known:
    """What the server has told so far."""

    facts: Facts
    inspection: Inspection | None = None
    resolution: Resolution | None = None

    @property
    def interpreters(self) -> tuple[Interpreter, ...]:
        return (self.inspection or self.facts).interpreters


def needs_of(known: Known, settings: Settings, text: str) -> Needs:
    """Raises UsageError for wrong requirements."""
    requirements = parse_requirements(text)
    resolution = known.resolution
    if requirements.lines and len(requirements.hashes) == len(requirements.names):
        # A lock names everything by itself.
        pinned = {canonical(one.name): str(one.specifier)[2:] for one in requirements.lines}
        resolution = Resolution(packages=pinned)
    config = known.inspection.pip_config if known.inspection else {}
    return Needs(
        settings,
        requirements,
        requirements_hash(text),
        known.facts.gpus,
        known.facts.system.machine,
        config.get("no-index", "").lower() in ("1", "true", "yes", "on"),
        resolution,
    )


def plain(requirement: Requirement) -> str:
    """Without its marker, which is known to hold."""
    return str(requirement).partition(" ; ")[0].partition("; ")[0]
