"""The plans that the agent carries out, as it takes them.

An environment's key is made of the requirements, the interpreter and the torch build.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from remote.agent.shared.names import canonical
from remote.deploy.candidates import MAX_NOTES, Candidate, best_to_build, usable
from remote.deploy.needs import MODULES, TORCH_FAMILY, Known, Needs, plain
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
from remote.records import EnvironmentPlan
from remote.screen.text import one_line


def as_is(needs: Needs, item: Candidate, why: str, notes: Sequence[str]) -> EnvironmentPlan:
    args = _args(needs, item, "as-is", item.torch_label)
    return EnvironmentPlan("as-is", why, args["key"], args=args, notes=tuple(notes))


def resolve(needs: Needs, items: Sequence[Candidate], known: Known) -> EnvironmentPlan:
    """pip or uv there is asked what the requirements bring along, for each python until one can
    have it."""
    lines = [_public(plain(one)) for one in needs.applicable(items[0].python.markers)]
    args = {
        "pythons": [item.path for item in items],
        "install": [*lines, *needs.requirements.unnamed],
        "constraints": [str(limit) for limit in needs.requirements.constraints],
        "options": list(needs.requirements.options),
        "helpers": _helpers(known),
    }
    return EnvironmentPlan("resolve-first", "asking what the requirements bring along", args=args)


def overlay(needs: Needs, item: Candidate, known: Known, notes: Sequence[str]) -> EnvironmentPlan:
    """A venv that sees the interpreter's own packages; its torch is pinned, so that nothing
    replaces it."""
    pins = [f"{name}=={item.packages[name]}" for name in family_of(item.packages, item.missing)]
    torch: dict[str, Any] = {}
    build = of_the_family(item.packages.get("torch", ""))
    if needs.needs_torch and "torch" not in item.packages:
        torch = choose_torch(needs, item.python.markers)
    elif build and any(name in item.missing for name in TORCH_FAMILY):
        torch = source(needs, build, [])
    hashes = needs.requirements.hashes
    lines = [line + hashes.get(name, "") for name, lines in item.missing.items() for line in lines]
    args = _args(needs, item, "overlay", torch.get("build") or item.torch_label, known)
    args |= _installed(needs, lines, torch)
    args["constraints"] += pins
    if "torch" in item.packages:
        args["need_mib"] = need_mib(needs, {}, list(item.missing))
    if item.python.is_venv:
        # A venv made from a venv sees only the base interpreter.
        args["parent_sites"] = list(item.python.sites)
    count = len(item.missing)
    why = (
        f"installing {count} missing package{'s' * (count > 1)}"
        f" ({one_line(', '.join(item.missing), 120)}) on top of {item}"
    )
    return EnvironmentPlan("overlay", why, args["key"], args=args, notes=tuple(notes))


def venv(
    needs: Needs, item: Candidate, known: Known, notes: Sequence[str], because: str
) -> EnvironmentPlan:
    torch = choose_torch(needs, item.python.markers)
    hashes = needs.requirements.hashes
    lines = [
        plain(one) + hashes.get(canonical(one.name), "")
        for one in needs.applicable(item.python.markers)
    ]
    args = _args(needs, item, "venv", torch.get("build") or "default", known)
    args |= _installed(needs, [*lines, *needs.requirements.unnamed], torch)
    about = f"; torch: {torch['reason']}" if torch else ""
    why = f"building a venv of {item}: {because}{about}"
    return EnvironmentPlan("venv", why, args["key"], args=args, notes=tuple(notes))


def conda(needs: Needs, known: Known) -> EnvironmentPlan:
    """An environment of conda's, made by what is there of conda, mamba and micromamba."""
    program = known.inspection.conda if known.inspection else None
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
    key = _key([needs.requirements_hash, "conda", program, needs.refreshed], known)
    args = {
        "key": key,
        "kind": "conda",
        "python": program,
        "requirements_hash": needs.requirements_hash,
        "wanted": needs.wanted,
        "detail": ["torch"],
        "conda": list(lines),
        "need_mib": max(need_mib(needs, torch), SMALL_MIB + PACKAGE_MIB * len(names)),
    }
    why = f"{program} makes the environment from environment.yml"
    return EnvironmentPlan("conda", why, key, args=args)


def _installed(needs: Needs, lines: Sequence[str], torch: Mapping[str, Any]) -> dict[str, Any]:
    late = list(needs.resolution.late) if needs.resolution else []
    return {
        "install": [line for line in lines if line not in late],
        "late": late,
        "torch": dict(torch),
        "need_mib": need_mib(needs, torch),
    }


def _args(
    needs: Needs, item: Candidate, kind: str, build: str, known: Known | None = None
) -> dict[str, Any]:
    """What every kind of plan tells the agent."""
    names = list(
        dict.fromkeys(canonical(one.name) for one in needs.applicable(item.python.markers))
    )
    needs_torch = needs.needs_torch or item.brings_torch
    brought = {*names, *needs.comes}
    modules = [module for name, module in MODULES.items() if name in brought]
    parts = [needs.requirements_hash, kind, item.path, item.python.version, build]
    return {
        "key": _key(parts + [needs.refreshed] * bool(needs.refreshed), known),
        "kind": kind,
        "python": item.path,
        "version": item.python.version,
        "requirements_hash": needs.requirements_hash,
        "wanted": needs.wanted,
        "names": names,
        "detail": needs.requirements.names_with_extras,
        "needs_torch": needs_torch,
        "imports": list(dict.fromkeys(["torch", *modules])) if needs_torch else [],
        "constraints": [str(limit) for limit in needs.requirements.constraints],
        "options": list(needs.requirements.options),
        "helpers": _helpers(known),
        "older": _older(needs, item, known),
    }


def _helpers(known: Known | None) -> list[str]:
    """Interpreters whose pip may install for another."""
    found = known.facts.interpreters if known else ()
    return [one.path for one in found if one.has_pip and not one.problem][:MAX_NOTES]


def _older(needs: Needs, item: Candidate, known: Known | None) -> str:
    """What to propose where a package takes no python as new as this one."""
    found = [replace(one, configured=False) for one in (known.interpreters if known else ())]
    items = best_to_build(needs, usable(needs, [item.python, *found])[0], uv=True)
    older = [one for one in items if one.version[:2] < item.version[:2]]
    return f"{older[0].path} (python {older[0].python.version})" if older else ""


def _public(line: str) -> str:
    """torch==2.7.1+cu118 stands on torch's own index alone; what it brings does not depend on the
    build."""
    name, is_pinned, version = line.partition("==")
    return f"{name}=={version.partition('+')[0]}" if is_pinned and "@" not in name else line


def _key(parts: list[Any], known: Known | None) -> str:
    """A spoilt environment is built anew in its place, but beside it while a training may still be
    using it."""
    facts = known.facts if known else None
    made = {one.key: one for one in facts.environments} if facts else {}
    runs_live = bool(facts and any(run.state in ("queued", "running") for run in facts.runs))
    while True:
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        found = made.get(key)
        if not runs_live or found is None or not found.ready or found.valid:
            return key
        parts = [*parts, "again"]
