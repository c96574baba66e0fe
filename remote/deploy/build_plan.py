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
from remote.deploy.torch_builds import choose_torch, need_mib, of_the_family, public, source
from remote.errors import EnvironmentFailed
from remote.link.answers import Resolution
from remote.records import EnvironmentPlan
from remote.requirements.lines import without_hashes
from remote.screen.text import one_line


def ask_first(plan: EnvironmentPlan, items: Sequence[Candidate]) -> EnvironmentPlan:
    """pip or uv there resolves what the plan would install, for each python until one can have
    it."""
    lines = [public(without_hashes(line)) for line in plan.args["install"]]
    args = {**plan.args, "install": lines, "pythons": [item.path for item in items]}
    why = "resolving the requirements"
    return EnvironmentPlan("resolve-first", why, plan.key, args=args)


def as_is(needs: Needs, item: Candidate, why: str) -> EnvironmentPlan:
    return _plan(needs, item, "as-is", why, {"build": item.torch_label})


def overlay(needs: Needs, item: Candidate) -> EnvironmentPlan:
    """A venv that sees the interpreter's own packages; its torch is pinned, so that nothing
    replaces it."""
    told = needs.known.on_top or needs.resolution
    comes = (needs.known.on_top and needs.known.on_top.packages) or item.missing
    torch: dict[str, Any] = {}
    build = of_the_family(item.packages.get("torch", ""))
    if needs.needs_torch and "torch" not in item.packages:
        torch = choose_torch(needs, item.markers)
    elif build and any(name in comes for name in TORCH_FAMILY):
        torch = source(needs, build, [])
    kept = [name for name in TORCH_FAMILY if name in item.packages and name not in item.missing]
    asked = [(name, line) for name, lines in item.missing.items() for line in lines]
    lines = [_line(needs, name, line, torch) for name, line in asked]
    args = _to_install(needs, item, lines, told) | {"torch": torch}
    args["constraints"] += [f"{name}=={item.packages[name]}" for name in kept]
    args["need_mib"] = need_mib(needs, torch, comes if "torch" in item.packages else None)
    if item.is_venv:
        # A venv made from a venv sees only the base interpreter.
        args["parent_sites"] = list(item.sites)
    count = len(item.missing)
    why = (
        f"installing {count} missing package{'s' * (count > 1)}"
        f" ({one_line(', '.join(item.missing), 120)}) on top of {item}"
    )
    return _plan(needs, item, "overlay", why, {"build": item.torch_label} | args)


def venv(needs: Needs, item: Candidate, because: str) -> EnvironmentPlan:
    torch = choose_torch(needs, item.markers)
    found = needs.applicable(item.markers)
    lines = [_line(needs, canonical(one.name), str(one), torch) for one in found]
    args = _to_install(needs, item, [*lines, *needs.requirements.unnamed], needs.resolution)
    about = f"; torch: {torch['reason']}" if torch else ""
    why = f"building a venv of {item}: {because}{about}"
    args |= {"torch": torch, "need_mib": need_mib(needs, torch)}
    return _plan(needs, item, "venv", why, {"build": "default"} | args)


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
    room = max(need_mib(needs, {"build": "conda"} if has_torch else {}), need_mib(needs, {}, names))
    why = f"{program} makes the environment from {file}"
    args: dict[str, Any] = {"build": "conda", "conda": list(lines), "detail": ["torch"]}
    args |= {"constraints": list(map(str, needs.requirements.constraints)), "need_mib": room}
    return _plan(needs, Candidate(path=program), "conda", why, args)


def _to_install(
    needs: Needs, item: Candidate, lines: Sequence[str], told: Resolution | None
) -> dict[str, Any]:
    """`helpers`: interpreters whose pip may install for another."""
    late = told.late if told else ()
    pips = [one for one in needs.known.interpreters if one.has_pip and not one.problem]
    return {
        "install": [line for line in lines if line not in late],
        "late": list(late),
        "constraints": [str(limit) for limit in needs.requirements.constraints],
        "options": list(needs.requirements.options),
        "helpers": [one.path for one in pips[:MAX_NOTES]],
        "older": older_than(needs, item),
    }


def _plan(
    needs: Needs, item: Candidate, kind: str, why: str, more: dict[str, Any]
) -> EnvironmentPlan:
    """What every kind of plan tells the agent, and `more`. Its `build` is that of a torch that is
    not chosen."""
    names = dict.fromkeys(canonical(one.name) for one in needs.applicable(item.markers))
    needs_torch = needs.needs_torch or item.requires_torch
    modules = [module for name, module in MODULES.items() if name in {*names, *needs.comes}]
    build = more.get("torch", {}).get("build") or more["build"]
    parts = [kind, item.path, item.version, build, *filter(None, [needs.refreshed])]
    args = {
        "key": _key(needs, parts),
        "kind": kind,
        "python": item.path,
        "version": item.version,
        "requirements_hash": needs.requirements_hash,
        "wanted": needs.wanted,
        "names": list(names),
        "detail": needs.requirements.names_with_extras,
        "needs_torch": needs_torch,
        "imports": list(dict.fromkeys(["torch", *modules])) if needs_torch else [],
        **more,
    }
    return EnvironmentPlan(kind, why, args["key"], args=args)


def _line(needs: Needs, name: str, line: str, torch: Mapping[str, Any]) -> str:
    """With its hashes; but a lock has those of one build of torch and its family."""
    if name in TORCH_FAMILY and ("index" in torch or "links" in torch):
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
