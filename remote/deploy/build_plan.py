"""The plans that the agent carries out, as it takes them.

An environment's key is made of the requirements, the interpreter and the torch build.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from remote.agent.shared.names import canonical
from remote.deploy.candidates import MAX_NOTES, Candidate, older_than
from remote.deploy.needs import MODULES, TORCH_FAMILY, Needs
from remote.deploy.torch_builds import (
    PACKAGE_MIB,
    SMALL_MIB,
    choose_torch,
    family_of,
    need_mib,
    of_the_family,
    source,
)
from remote.errors import EnvironmentFailed
from remote.link.answers import Resolution
from remote.records import EnvironmentPlan
from remote.screen.text import one_line

ASKING = "asking what the requirements bring along"


def as_is(needs: Needs, item: Candidate, why: str) -> EnvironmentPlan:
    return _plan(needs, item, "as-is", why, item.torch_label)


def resolve(needs: Needs, items: Sequence[Candidate]) -> EnvironmentPlan:
    """pip or uv there is asked what the requirements bring along, for each python until one can
    have it."""
    lines = [_public(str(one)) for one in needs.applicable(items[0].markers)]
    args = {
        "pythons": [item.path for item in items],
        "install": [*lines, *needs.requirements.unnamed],
        **_for_pip(needs),
    }
    return EnvironmentPlan("resolve-first", ASKING, args=args)


def overlay(needs: Needs, item: Candidate) -> EnvironmentPlan:
    """A venv that sees the interpreter's own packages; its torch is pinned, so that nothing
    replaces it."""
    told = needs.known.on_top or needs.resolution or Resolution()
    comes = (needs.known.on_top and needs.known.on_top.packages) or item.missing
    torch: dict[str, Any] = {}
    build = of_the_family(item.packages.get("torch", ""))
    if needs.needs_torch and "torch" not in item.packages:
        torch = choose_torch(needs, item.markers)
    elif build and any(name in comes for name in TORCH_FAMILY):
        torch = source(needs, build, [])
    pins = [f"{name}=={item.packages[name]}" for name in family_of(item.packages, item.missing)]
    hashes = needs.requirements.hashes
    lines = [line + hashes.get(name, "") for name, lines in item.missing.items() for line in lines]
    more = _to_install(needs, item, lines, told.late, torch)
    more["constraints"] += pins
    if "torch" in item.packages:
        more["need_mib"] = need_mib(needs, {}, comes)
    if item.is_venv:
        # A venv made from a venv sees only the base interpreter.
        more["parent_sites"] = list(item.sites)
    count = len(item.missing)
    why = (
        f"installing {count} missing package{'s' * (count > 1)}"
        f" ({one_line(', '.join(item.missing), 120)}) on top of {item}"
    )
    return _plan(needs, item, "overlay", why, torch.get("build") or item.torch_label, more)


def on_top_first(plan: EnvironmentPlan) -> EnvironmentPlan:
    """pip there is asked what an overlay would install, and whether torch can stay."""
    return EnvironmentPlan(
        "resolve-first", ASKING, args={**plan.args, "pythons": [plan.args["python"]]}
    )


def venv(needs: Needs, item: Candidate, because: str) -> EnvironmentPlan:
    markers = item.markers
    torch = choose_torch(needs, markers)
    hashes = needs.requirements.hashes
    lines = [str(one) + hashes.get(canonical(one.name), "") for one in needs.applicable(markers)]
    late = needs.resolution.late if needs.resolution else ()
    more = _to_install(needs, item, [*lines, *needs.requirements.unnamed], late, torch)
    about = f"; torch: {torch['reason']}" if torch else ""
    why = f"building a venv of {item}: {because}{about}"
    return _plan(needs, item, "venv", why, torch.get("build") or "default", more)


def conda(needs: Needs) -> EnvironmentPlan:
    """An environment of conda's, made by what is there of conda, mamba and micromamba."""
    program = needs.known.inspection.conda if needs.known.inspection else None
    if program is None:
        raise EnvironmentFailed(
            "environment.yml needs conda, mamba or micromamba, and none of them is on the server",
            step="environment",
            remedy="install one there (micromamba needs no root), or name a requirements file",
        )
    lines = needs.requirements.conda
    found = [re.match(r"\s*-\s*(?:[\w.-]+::)?([\w.-]+)", line) for line in lines]
    names = [canonical(match[1]) for match in found if match]
    needs_torch = any(name in MODULES or name.startswith("pytorch") for name in names)
    torch = {"build": "conda"} if needs_torch else {}
    args = {
        "key": _key(needs, ["conda", program, needs.refreshed]),
        "kind": "conda",
        "python": program,
        "requirements_hash": needs.requirements_hash,
        "wanted": needs.wanted,
        "detail": ["torch"],
        "conda": list(lines),
        "need_mib": max(need_mib(needs, torch), SMALL_MIB + PACKAGE_MIB * len(names)),
    }
    why = f"{program} makes the environment from environment.yml"
    return EnvironmentPlan("conda", why, args["key"], args=args)


def _to_install(
    needs: Needs,
    item: Candidate,
    lines: Sequence[str],
    late: Sequence[str],
    torch: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "install": [line for line in lines if line not in late],
        "late": list(late),
        "torch": dict(torch),
        "need_mib": need_mib(needs, torch),
        "older": older_than(needs, item),
        **_for_pip(needs),
    }


def _for_pip(needs: Needs) -> dict[str, Any]:
    """`helpers`: interpreters whose pip may install for another."""
    found = needs.known.facts.interpreters
    return {
        "constraints": [str(limit) for limit in needs.requirements.constraints],
        "options": list(needs.requirements.options),
        "helpers": [one.path for one in found if one.has_pip and not one.problem][:MAX_NOTES],
    }


def _plan(
    needs: Needs,
    item: Candidate,
    kind: str,
    why: str,
    build: str,
    more: Mapping[str, Any] | None = None,
) -> EnvironmentPlan:
    """What every kind of plan tells the agent, and `more`."""
    names = list(dict.fromkeys(canonical(one.name) for one in needs.applicable(item.markers)))
    needs_torch = needs.needs_torch or item.brings_torch
    modules = [module for name, module in MODULES.items() if name in {*names, *needs.comes}]
    parts = [kind, item.path, item.version, build, *filter(None, [needs.refreshed])]
    args = {
        "key": _key(needs, parts),
        "kind": kind,
        "python": item.path,
        "version": item.version,
        "requirements_hash": needs.requirements_hash,
        "wanted": needs.wanted,
        "names": names,
        "detail": needs.requirements.names_with_extras,
        "needs_torch": needs_torch,
        "imports": list(dict.fromkeys(["torch", *modules])) if needs_torch else [],
        **(more or {}),
    }
    return EnvironmentPlan(kind, why, args["key"], args=args)


def _public(line: str) -> str:
    """torch==2.7.1+cu118 stands on torch's own index alone; what it brings does not depend on the
    build."""
    return line if "@" in line else re.sub(r"(==[^,+]+)\+[^,\s]+", r"\1", line)


def _key(needs: Needs, parts: Sequence[Any]) -> str:
    """A spoilt environment is built anew in its place, but beside it while a training may still be
    using it."""
    facts = needs.known.facts
    made = {one.key: one for one in facts.environments}
    runs_live = any(run.state in ("queued", "running") for run in facts.runs)
    parts = [needs.requirements_hash, *parts]
    while True:
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        found = made.get(key)
        if not runs_live or found is None or not found.ready or found.valid:
            return key
        parts = [*parts, "again"]
