"""Requirements parsed by `packaging`, and compared with what an interpreter has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remote.agent.shared.environment import Interpreter
from remote.agent.shared.names import canonical
from remote.requirements.lines import (
    CONDA,
    CONSTRAINED,
    PREFERS_PYTHON,
    REQUIRES_PYTHON,
    problems_of,
    read_line,
    split_lines,
    wrong_lines,
)

if TYPE_CHECKING:
    from packaging.requirements import Requirement

HARDWARE = ("nvidia-", "cuda-", "triton", "pytorch-triton", "torchtriton", "rocm")
"""What torch depends on in one of several forms; whether it works is for the GPU check to say."""


@dataclass(frozen=True)
class Requirements:
    """What the text asks for. `options` are in the form that the agent takes: `--name value`."""

    lines: tuple[Requirement, ...] = ()
    constraints: tuple[Requirement, ...] = ()
    options: tuple[str, ...] = ()
    # Addresses without a name: what they are is known once they are installed.
    unnamed: tuple[str, ...] = ()
    # Canonical name → ` --hash=…` for each file that it may come from.
    hashes: Mapping[str, str] = field(default_factory=dict)
    # The project's requires-python, and what its .python-version says.
    python: str = ""
    preferred: str = ""
    # The lines of conda's environment.yml, which conda reads there.
    conda: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(canonical(requirement.name) for requirement in self.lines))

    @property
    def names_with_extras(self) -> list[str]:
        """`name` or `name[extra,…]`: what the agent follows to all that these packages need."""
        found: dict[str, set[str]] = {name: set() for name in self.names}
        for requirement in self.lines:
            found[canonical(requirement.name)].update(requirement.extras)
        return [
            name + (f"[{','.join(sorted(extras))}]" if extras else "")
            for name, extras in found.items()
        ]


def parse_requirements(text: str) -> Requirements:
    """Raises UsageError naming every wrong line."""
    from packaging.requirements import Requirement

    lines = split_lines(text)
    if problems := problems_of(lines):
        raise wrong_lines(problems)
    found: dict[str, list[str]] = {}
    asked: list[Requirement] = []
    hashes: dict[str, str] = {}
    for kind, values in (read_line(line.text) for line in lines):
        if kind == "package":
            asked.append(Requirement(values[0]))
            # A lock may hold several versions of one, for different pythons.
            name = canonical(asked[-1].name)
            hashes[name] = hashes.get(name, "") + values[1]
        else:
            found.setdefault(kind, []).extend(values)
    return Requirements(
        tuple(dict.fromkeys(asked)),
        tuple(map(Requirement, found.get(CONSTRAINED, ()))),
        tuple(found.get("option", ())),
        tuple(found.get("address", ())),
        {name: kept for name, kept in hashes.items() if kept},
        "".join(found.get(REQUIRES_PYTHON, ())),
        "".join(found.get(PREFERS_PYTHON, ())),
        tuple(found.get(CONDA, ())),
    )


def applicable(
    requirements: Iterable[Requirement], markers: Mapping[str, str], extras: Iterable[str] = ()
) -> list[Requirement]:
    """Those whose markers hold on an interpreter that described itself by `markers`, without
    these."""
    found = [copy(one) for one in requirements if _holds(one, markers, extras)]
    for one in found:
        one.marker = None
    return found


def _holds(requirement: Requirement, markers: Mapping[str, str], extras: Iterable[str]) -> bool:
    from packaging.markers import UndefinedComparison, UndefinedEnvironmentName

    if requirement.marker is None:
        return True
    try:
        return any(
            requirement.marker.evaluate({**markers, "extra": extra}) for extra in (*extras, "")
        )
    except (UndefinedComparison, UndefinedEnvironmentName, ValueError):
        return True


def find_missing(requirements: Requirements, python: Interpreter) -> dict[str, list[str]]:
    """Canonical name → lines to install, of what an interpreter lacks or has in a wrong version, at
    any depth."""
    limits: dict[str, list[Requirement]] = {}
    for limit in applicable(requirements.constraints, python.markers):
        limits.setdefault(canonical(limit.name), []).append(limit)
    missing: dict[str, list[str]] = {}
    pending = applicable(requirements.lines, python.markers)
    seen: set[str] = set()
    while pending:
        requirement = pending.pop(0)
        name = canonical(requirement.name)
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        if all(_satisfies(python, one) for one in (requirement, *limits.get(name, ()))):
            pending += _needed_by(python, name, requirement.extras)
        else:
            missing.setdefault(name, []).append(str(requirement))
    return missing


def _needed_by(python: Interpreter, name: str, extras: Iterable[str]) -> list[Requirement]:
    from packaging.requirements import InvalidRequirement, Requirement

    found = []
    for text in python.requires.get(name, ()):
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            continue
        if name != "torch" or not canonical(needed.name).startswith(HARDWARE):
            found.append(needed)
    return applicable(found, python.markers, extras)


def _satisfies(python: Interpreter, requirement: Requirement) -> bool:
    from packaging.version import InvalidVersion

    name = canonical(requirement.name)
    version = python.packages.get(name)
    if version is None:
        return False
    if requirement.url is not None:
        return _bare(python.urls.get(name, "")) == _bare(requirement.url)
    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _bare(url: str) -> str:
    """Without a password, and a fragment."""
    return re.sub(r"(://)[^/\s@]*@", r"\1", url).split("#")[0].removeprefix("git+").rstrip("/")
