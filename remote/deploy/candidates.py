"""The server's interpreters: which can be used, what each lacks, and which is best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from remote.agent.shared.environment import Interpreter
from remote.agent.shared.text import redact
from remote.deploy.needs import Needs
from remote.deploy.torch_builds import torch_problem
from remote.errors import EnvironmentFailed
from remote.requirements.parsed import find_missing
from remote.screen.text import one_line

OLDEST = (3, 8)
TORCH_NEWEST = (3, 14)
"""The newest python that torch is known to have wheels for."""
MAX_NOTES = 5


class Candidate(Interpreter):
    """`missing`: canonical name → lines to install; `torch_problem`: why its torch won't do."""

    order = 0
    missing: Mapping[str, Sequence[str]] = {}
    torch_problem: str | None = None

    @property
    def requires_torch(self) -> bool:
        """What is asked for and stands in it needs torch."""
        return "torch" in self.requires

    @property
    def unfit_torch(self) -> str | None:
        """Why its torch can't stay."""
        if self.torch_problem is None and "torch" in self.packages and "torch" in self.missing:
            return f"its torch {self.packages['torch']} is not of the version required"
        return self.torch_problem

    @property
    def has_torch(self) -> bool:
        """A torch that can stay: of a version that is asked for, and fit for the GPUs."""
        return "torch" in self.packages and self.unfit_torch is None

    @property
    def torch_label(self) -> str:
        return f"{self.torch.version} {self.torch.cuda}" if self.torch.version else "none"

    def __str__(self) -> str:
        torch = self.torch
        cuda = f" (CUDA {torch.cuda})" if torch.cuda else ""
        about = f", torch {torch.version}{cuda}" if torch.version else ""
        return f"{self.path} (python {self.version}{about})"


def usable(needs: Needs, notes: list[str]) -> list[Candidate]:
    """The interpreters to choose from, remote.python alone where it is set; `notes` gets why others
    are left out. Raises EnvironmentFailed if there are none."""
    found: list[Candidate] = []
    left: list[str] = []
    for order, python in enumerate(needs.known.interpreters):
        problem = python.problem or _version_problem(needs, python)
        if not problem:
            found.append(_assess(needs, python, order))
        elif python.configured:
            raise EnvironmentFailed(
                f"remote.python can't be used: {python.path}: {one_line(problem, 300)}",
                step="environment",
                remedy="set remote.python to an interpreter that works, or to nothing",
            )
        else:
            left.append(f"passed over {python.path}: {one_line(problem, 200)}")
    if not found:
        asked = needs.requirements.python or f">={dotted(OLDEST)}"
        raise EnvironmentFailed(
            f"no python {asked} on the server: {'; '.join(left) or 'none was found'}",
            step="environment",
            remedy="install one there (miniforge needs no root) and set remote.python to its path",
        )
    preferred = needs.requirements.preferred
    if preferred and not any(prefers(needs, item) for item in found):
        left.append(f".python-version asks for python {preferred}, which is not there")
    notes += left[:MAX_NOTES]
    return [item for item in found if item.configured] or found


def _version_problem(needs: Needs, python: Interpreter) -> str | None:
    from packaging.specifiers import SpecifierSet

    if python.version_info[:2] < OLDEST:
        return f"it is python {python.version}, and {dotted(OLDEST)} is the oldest that will do"
    asked = needs.requirements.python
    version = dotted(python.version_info[:3])
    if asked and not SpecifierSet(asked).contains(version, prereleases=True):
        return f"it is python {version}, the project's requires-python is {asked}"
    return None


def _assess(needs: Needs, python: Interpreter, order: int) -> Candidate:
    missing = find_missing(needs.requirements, python)
    missing |= {redact(address): [address] for address in needs.requirements.unnamed}
    item = Candidate(*python)
    item.order, item.missing = order, missing
    if needs.needs_torch or item.requires_torch:
        item.torch_problem = torch_problem(item.torch, needs.settings.torch, needs.report)
    return item


def best_to_build(needs: Needs, items: Iterable[Candidate]) -> list[Candidate]:
    """One of each version of python to make a venv of, the best first: what can make one, a python
    that torch has wheels for, that of .python-version, the newest, no venv itself."""
    uv = needs.known.inspection is None or bool(needs.known.inspection.uv)

    def rank(item: Candidate) -> tuple[object, ...]:
        makes = uv or item.has_venv or item.has_virtualenv
        known = not needs.needs_torch or item.version_info[:2] <= TORCH_NEWEST
        own = not item.is_venv
        return makes, known, prefers(needs, item), item.version_info, own, -item.order

    versions: dict[tuple[int, ...], Candidate] = {}
    for item in sorted(items, key=rank, reverse=True):
        versions.setdefault(item.version_info[:2], item)
    return list(versions.values())


def older_than(needs: Needs, item: Candidate) -> str:
    """What to propose where a package takes no python as new as this one."""
    found = [
        one for one in needs.known.interpreters if one.version_info[:2] < item.version_info[:2]
    ]
    fit = [one for one in found if not one.problem and not _version_problem(needs, one)]
    best = max(fit, key=lambda one: one.version_info, default=None)
    return f"{best.path} (python {best.version})" if best else ""


def prefers(needs: Needs, item: Candidate) -> bool:
    return f"{dotted(item.version_info)}.".startswith(f"{needs.requirements.preferred}.")


def dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))
