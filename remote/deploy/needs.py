"""What an environment must have, and for which GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remote.deploy import gpus
from remote.deploy import requirements_file as files
from remote.deploy.requirements_file import Requirements, canonical
from remote.records import GpuReport, Settings

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
    # Everything that the requirements bring along, canonical name → version, as pip or uv there
    # resolved it; empty where it could not be told.
    comes: Mapping[str, str] = field(default_factory=dict)
    # What pip or uv there said; None: not asked yet.
    resolution: Mapping[str, Any] | None = None
    # When it was asked to be made anew, by the server's clock; empty: it was not.
    refreshed: str = ""

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
        return files.applicable(self.requirements.lines, markers)


def needs_of(
    facts: Mapping[str, Any], settings: Settings, text: str, report: GpuReport | None = None
) -> Needs:
    """Raises UsageError for wrong requirements."""
    requirements = files.parse_requirements(text)
    resolution = facts.get("resolution")
    comes = dict((resolution or {}).get("packages") or {})
    if requirements.lines and len(requirements.hashes) == len(requirements.names):
        # A lock names everything by itself.
        resolution = resolution or {}
        comes = {canonical(one.name): str(one.specifier)[2:] for one in requirements.lines}
    config = (facts.get("inspection") or {}).get("pip_config") or {}
    return Needs(
        settings,
        requirements,
        files.requirements_hash(text),
        report or gpus.parse_gpus(facts.get("gpu") or {}),
        str((facts.get("system") or {}).get("machine") or "x86_64"),
        str(config.get("no-index") or "").lower() in ("1", "true", "yes", "on"),
        comes,
        resolution,
    )


def plain(requirement: Requirement) -> str:
    """Without its marker, which is known to hold."""
    return str(requirement).partition(" ; ")[0].partition("; ")[0]
