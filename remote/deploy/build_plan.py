"""The plans that the agent carries out, as it takes them.

An environment's key is made of the requirements, the interpreter and the torch build.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from remote.agent.shared.build_plan import NO_TORCH, BuildKind, BuildPlan, TorchChoice
from remote.agent.shared.names import canonical
from remote.deploy.candidates import MAX_NOTES, Candidate, older_than
from remote.deploy.needs import MODULES, TORCH_FAMILY, Needs
from remote.deploy.torch_builds import choose_torch, need_mib, of_the_family, public, source
from remote.errors import EnvironmentFailed
from remote.link.answers import Resolution
from remote.records import EnvironmentPlan
from remote.requirements.lines import without_hashes
from remote.screen.text import one_line


def ask_first(plan: EnvironmentPlan, items: Sequence[Candidate]) -> EnvironmentPlan:
    """pip or uv there resolves what the plan would install, for each python until one can have
    it."""
    build = plan.build._replace(
        install=[public(without_hashes(line)) for line in plan.build.install],
        pythons=[item.path for item in items],
    )
    return EnvironmentPlan("resolve-first", "resolving the requirements", plan.key, build)


def as_is(needs: Needs, item: Candidate, why: str) -> EnvironmentPlan:
    return _told(_plan(needs, item, "as-is", item.torch_label), why)


def overlay(needs: Needs, item: Candidate) -> EnvironmentPlan:
    """A venv that sees the interpreter's own packages; its torch is pinned, so that nothing
    replaces it."""
    told = needs.known.on_top or needs.resolution
    comes = (needs.known.on_top and needs.known.on_top.packages) or item.missing
    torch = NO_TORCH
    build = of_the_family(item.packages.get("torch", ""))
    if needs.needs_torch and "torch" not in item.packages:
        torch = choose_torch(needs, item.markers)
    elif build and any(name in comes for name in TORCH_FAMILY):
        torch = source(needs, build, [])
    kept = [name for name in TORCH_FAMILY if name in item.packages and name not in item.missing]
    asked = [(name, line) for name, lines in item.missing.items() for line in lines]
    lines = [_line(needs, name, line, torch) for name, line in asked]
    plan = _plan(needs, item, "overlay", item.torch_label, torch)
    plan = _to_install(plan, needs, item, lines, told)
    plan = plan._replace(
        constraints=[*plan.constraints, *(f"{name}=={item.packages[name]}" for name in kept)],
        need_mib=0 if "torch" in item.packages else need_mib(torch),
        # A venv made from a venv sees only the base interpreter.
        parent_sites=item.sites if item.is_venv else (),
    )
    count = len(item.missing)
    why = (
        f"installing {count} missing package{'s' * (count > 1)}"
        f" ({one_line(', '.join(item.missing), 120)}) on top of {item}"
    )
    return _told(plan, why)


def venv(needs: Needs, item: Candidate, because: str) -> EnvironmentPlan:
    torch = choose_torch(needs, item.markers)
    found = needs.applicable(item.markers)
    lines = [_line(needs, canonical(one.name), str(one), torch) for one in found]
    plan = _plan(needs, item, "venv", "default", torch)
    lines += needs.requirements.unnamed
    plan = _to_install(plan, needs, item, lines, needs.resolution)
    about = f"; torch: {torch.reason}" if torch.build else ""
    why = f"building a venv of {item}: {because}{about}"
    return _told(plan._replace(need_mib=need_mib(torch)), why)


def conda(needs: Needs) -> EnvironmentPlan:
    """An environment of conda's, made by what is there of conda, mamba and micromamba."""
    program = needs.known.inspection.conda if needs.known.inspection else None
    file = needs.settings.requirements
    if program is None:
        raise EnvironmentFailed(
            f"{file} needs conda, mamba or micromamba, and none of them is on the server",
            step="environment",
            remedy="install one there (micromamba needs no root), or name a requirements file",
        )
    lines = needs.requirements.conda
    found = [re.match(r"\s*-\s*(?:[\w.-]+::)?([\w.-]+)", line) for line in lines]
    names = [canonical(match[1]) for match in found if match]
    has_torch = any(name in MODULES or name.startswith("pytorch") for name in names)
    torch = TorchChoice("conda" if has_torch else "")
    plan = _plan(needs, Candidate(path=program), "conda", "conda")._replace(
        conda=list(lines),
        detail=["torch"],
        constraints=list(map(str, needs.requirements.constraints)),
        need_mib=need_mib(torch),
    )
    return _told(plan, f"{program} makes the environment from {file}")


def _told(plan: BuildPlan, why: str) -> EnvironmentPlan:
    return EnvironmentPlan(plan.kind, why, plan.key, plan)


def _to_install(
    plan: BuildPlan, needs: Needs, item: Candidate, lines: Sequence[str], told: Resolution | None
) -> BuildPlan:
    late = told.late if told else ()
    pips = [one for one in needs.known.interpreters if one.has_pip and not one.problem]
    pips.sort(key=lambda one: one.path != item.path)
    return plan._replace(
        install=[line for line in lines if line not in late],
        late=late,
        constraints=[str(limit) for limit in needs.requirements.constraints],
        options=needs.requirements.options,
        helpers=[one.path for one in pips[:MAX_NOTES]],
        older=older_than(needs, item),
    )


def _plan(
    needs: Needs, item: Candidate, kind: BuildKind, build: str, torch: TorchChoice = NO_TORCH
) -> BuildPlan:
    """What every kind of plan has. `build`: that of a torch which is not chosen."""
    names = dict.fromkeys(canonical(one.name) for one in needs.applicable(item.markers))
    needs_torch = needs.needs_torch or item.requires_torch
    modules = [module for name, module in MODULES.items() if name in {*names, *needs.comes}]
    decided = [kind, item.path, item.version, torch.build or build]
    return BuildPlan(
        _key(needs, [*decided, *filter(None, [needs.refreshed])]),
        kind,
        item.path,
        item.version or "",
        needs.requirements_hash,
        needs.wanted,
        names=list(names),
        detail=needs.requirements.names_with_extras,
        needs_torch=needs_torch,
        imports=list(dict.fromkeys(["torch", *modules])) if needs_torch else [],
        torch=torch,
    )


def _line(needs: Needs, name: str, line: str, torch: TorchChoice) -> str:
    """With its hashes; but a lock has those of one build of torch and its family."""
    if name in TORCH_FAMILY and torch.source:
        return public(line)
    return line + needs.requirements.hashes.get(name, "")


def _key(needs: Needs, parts: Sequence[Any]) -> str:
    """A spoilt environment is built anew in its place, but beside it while a training may still be
    using it."""
    facts = needs.known.facts
    made = {one.key: one for one in facts.environments}
    parts = [needs.requirements_hash, *parts]
    while True:
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        found = made.get(key)
        if not facts.live or found is None or not found.ready or found.valid:
            return key
        parts = [*parts, "again"]
