"""The server's interpreters, judged: which can be used, what each lacks, and which is best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remote.agent.shared.text import redact
from remote.deploy import requirements_file as files
from remote.deploy.needs import Needs
from remote.deploy.torch_builds import torch_problem
from remote.errors import EnvironmentFailed
from remote.screen.text import one_line

Record = Mapping[str, Any]
OLDEST = (3, 8)
TORCH_NEWEST = (3, 14)
"""The newest python that torch is known to have wheels for."""
MAX_NOTES = 5


@dataclass(frozen=True)
class Candidate:
    """`missing`: canonical name → lines to install; `torch_problem`: why its torch won't do."""

    entry: Record
    order: int
    missing: Mapping[str, Sequence[str]]
    torch_problem: str | None = None

    @property
    def path(self) -> str:
        return str(self.entry["path"])

    @property
    def version(self) -> tuple[int, ...]:
        return version_of(self.entry)

    @property
    def packages(self) -> Mapping[str, str]:
        return dict(self.entry.get("packages") or {})

    @property
    def markers(self) -> Mapping[str, str]:
        return dict(self.entry.get("markers") or {})

    @property
    def brings_torch(self) -> bool:
        """What is asked for and stands in it needs torch."""
        return "torch" in (self.entry.get("requires") or {})

    @property
    def has_torch(self) -> bool:
        """A torch that can stay: of a version that is asked for, and fit for the GPUs."""
        return (
            self.torch_problem is None and "torch" in self.packages and "torch" not in self.missing
        )

    @property
    def torch_label(self) -> str:
        torch = self.entry.get("torch") or {}
        return f"{torch.get('version')} {torch.get('cuda')}" if torch else "none"

    def __str__(self) -> str:
        torch = self.entry.get("torch") or {}
        cuda = f" (CUDA {torch['cuda']})" if torch.get("cuda") else ""
        about = f", torch {torch.get('version')}{cuda}" if torch else ""
        return f"{self.path} (python {self.entry.get('version')}{about})"


def usable(needs: Needs, entries: Iterable[Record]) -> tuple[list[Candidate], list[str]]:
    """The interpreters to choose from, and notes about those left out. Raises EnvironmentFailed if
    there are none."""
    found: list[Candidate] = []
    notes: list[str] = []
    for order, entry in enumerate(entries):
        problem = entry.get("problem") or python_problem(needs, entry)
        if not problem:
            found.append(_judge(needs, entry, order))
        elif entry.get("configured"):
            raise EnvironmentFailed(
                f"remote.python can't be used: {entry.get('path')}: {one_line(str(problem), 300)}",
                step="environment",
                remedy="set remote.python to an interpreter that works, or to nothing",
            )
        else:
            notes.append(f"passed over {entry.get('path')}: {one_line(str(problem), 200)}")
    if not found:
        asked = needs.requirements.python or f">={dotted(OLDEST)}"
        raise EnvironmentFailed(
            f"no python {asked} on the server: {'; '.join(notes) or 'none was found'}",
            step="environment",
            remedy="install one there (miniforge needs no root) and set remote.python to its path",
        )
    preferred = needs.requirements.preferred
    if preferred and not any(prefers(needs, item) for item in found):
        notes.append(f".python-version asks for python {preferred}, which is not there")
    return found, notes[:MAX_NOTES]


def python_problem(needs: Needs, entry: Record) -> str | None:
    from packaging.specifiers import SpecifierSet

    if version_of(entry)[:2] < OLDEST:
        return f"it is python {entry.get('version')}, the project needs {dotted(OLDEST)}"
    asked = needs.requirements.python
    version = dotted(version_of(entry)[:3])
    if asked and not SpecifierSet(asked).contains(version, prereleases=True):
        return f"it is python {version}, the project's requires-python is {asked}"
    return None


def _judge(needs: Needs, entry: Record, order: int) -> Candidate:
    if "packages" not in entry:
        return Candidate(entry, order, {})
    parts = ("packages", "requires", "urls", "markers")
    installed = files.Installed(*(entry.get(name) or {} for name in parts))
    missing = installed.find_missing(needs.requirements)
    missing = missing | {redact(address): [address] for address in needs.requirements.unnamed}
    item = Candidate(entry, order, missing)
    if not needs.needs_torch and not item.brings_torch:
        return item
    problem = torch_problem(entry.get("torch") or {}, needs.settings.torch, needs.report)
    return Candidate(entry, order, missing, problem)


def best_to_build(needs: Needs, items: Iterable[Candidate], uv: bool) -> list[Candidate]:
    """One of each version of python to make a venv of, the best first: what can make one, a python
    that torch has wheels for, that of .python-version, the newest, no venv itself."""

    def rank(item: Candidate) -> tuple[object, ...]:
        makes = bool(uv or item.entry.get("has_venv") or item.entry.get("has_virtualenv"))
        known = not needs.needs_torch or item.version[:2] <= TORCH_NEWEST
        own = not item.entry.get("is_venv")
        return makes, known, prefers(needs, item), item.version, own, -item.order

    versions: dict[tuple[int, ...], Candidate] = {}
    for item in sorted(items, key=rank, reverse=True):
        versions.setdefault(item.version[:2], item)
    return list(versions.values())


def prefers(needs: Needs, item: Candidate) -> bool:
    return f"{dotted(item.version)}.".startswith(f"{needs.requirements.preferred}.")


def version_of(entry: Record) -> tuple[int, ...]:
    info = entry.get("version_info")
    return (
        tuple(part for part in info if isinstance(part, int))
        if isinstance(info, (list, tuple))
        else ()
    )


def dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))
