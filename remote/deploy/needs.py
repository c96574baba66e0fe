"""What an environment must have, for which GPUs, and what the server has told of itself so far."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote.agent.shared.environment import Interpreter
from remote.agent.shared.names import canonical
from remote.link.answers import Inspection, Resolution
from remote.link.facts import Facts
from remote.records import GpuReport, Settings
from remote.requirements.parsed import Requirements, applicable

if TYPE_CHECKING:
    from packaging.requirements import Requirement

TORCH_FAMILY = ("torch", "torchvision", "torchaudio")
"""Made for each other: they come from one index, and none of them is replaced alone."""
MODULES = {name: name for name in (*TORCH_FAMILY, "torchmetrics", "lightning")} | {
    "pytorch-lightning": "pytorch_lightning"
}
"""What is imported to prove an environment; each of them depends on torch."""


@dataclass(frozen=True)
class Known:
    """What the server has told so far. `on_top`: what would be installed beside an image's torch;
    `resolution`: what an environment made anew would get."""

    facts: Facts
    inspection: Inspection | None = None
    resolution: Resolution | None = None
    on_top: Resolution | None = None

    @property
    def interpreters(self) -> tuple[Interpreter, ...]:
        return self.inspection.interpreters if self.inspection else ()


@dataclass(frozen=True)
class Needs:
    known: Known
    settings: Settings
    requirements: Requirements
    requirements_hash: str
    # When it was asked to be made anew, by the server's clock; empty: it was not.
    refreshed: str = ""

    @property
    def report(self) -> GpuReport:
        return self.known.facts.gpus

    @property
    def is_lock(self) -> bool:
        """It names everything by itself."""
        requirements = self.requirements
        return bool(requirements.lines) and len(requirements.hashes) == len(requirements.names)

    @property
    def resolution(self) -> Resolution | None:
        """What pip or uv there said that the requirements resolve to; None: not asked yet."""
        if not self.is_lock:
            return self.known.resolution
        lines = self.requirements.lines
        return Resolution(packages={canonical(x.name): str(x.specifier)[2:] for x in lines})

    @property
    def comes(self) -> Mapping[str, str]:
        """Canonical name → version of all that will be installed; empty where it is not known."""
        told = [one.packages or {} for one in (self.resolution, self.known.on_top) if one]
        return {name: version for packages in told for name, version in packages.items()}

    def names_torch_source(self, markers: Mapping[str, str]) -> bool:
        """The requirements (or pip's settings there, which ask no index) say themselves which build
        of torch it is, or that it comes from an index of theirs. A lock says so by its version:
        its indexes may be those of another system."""
        inspection, options = self.known.inspection, self.requirements.options
        offline = "--no-index" in options or bool(inspection and inspection.no_index)
        own = any(re.match(r".*index-url .*(/whl/|pytorch)", one) for one in options)
        own = own and not self.requirements.hashes
        torch = [line for line in self.applicable(markers) if canonical(line.name) == "torch"]
        return offline or own or any(line.url or "+" in str(line.specifier) for line in torch)

    @property
    def needs_torch(self) -> bool:
        return "torch" in self.comes or any(name in MODULES for name in self.requirements.names)

    @property
    def wanted(self) -> dict[str, str]:
        return {"python": self.settings.python, "torch": self.settings.torch}

    def applicable(self, markers: Mapping[str, str]) -> list[Requirement]:
        return applicable(self.requirements.lines, markers)
