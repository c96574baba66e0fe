"""The plans that the agent carries out, as it takes them.

An environment's key is made of the requirements, the interpreter and the torch build.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from remote.deploy.candidates import MAX_NOTES, Candidate, best_to_build, usable
from remote.deploy.needs import MODULES, TORCH_FAMILY, Needs, plain
from remote.deploy.requirements_file import canonical, names_with_extras
from remote.deploy.torch_builds import choose_torch, family_of, need_mib, of_the_family, source
from remote.records import EnvironmentPlan
from remote.screen.text import one_line


def as_is(needs: Needs, item: Candidate, why: str, notes: Sequence[str]) -> EnvironmentPlan:
    args = _args(needs, item, "as-is", item.torch_label)
    return EnvironmentPlan("as-is", why, args["key"], args=args, notes=tuple(notes))


def resolve(needs: Needs, items: Sequence[Candidate], facts: Mapping[str, Any]) -> EnvironmentPlan:
    """pip or uv there is asked what the requirements bring along, for each python until one can
    have it."""
    lines = [_public(plain(one)) for one in needs.applicable(items[0].markers)]
    args = {
        "pythons": [item.path for item in items],
        "install": [*lines, *needs.requirements.unnamed],
        "constraints": [str(limit) for limit in needs.requirements.constraints],
        "options": list(needs.requirements.options),
        "helpers": _helpers(facts),
    }
    return EnvironmentPlan("resolve-first", "asking what the requirements bring along", args=args)


def overlay(
    needs: Needs, item: Candidate, facts: Mapping[str, Any], notes: Sequence[str]
) -> EnvironmentPlan:
    """A venv that sees the interpreter's own packages; its torch is pinned, so that nothing
    replaces it."""
    pins = [f"{name}=={item.packages[name]}" for name in family_of(item.packages, item.missing)]
    torch: dict[str, Any] = {}
    build = of_the_family(item.packages.get("torch", ""))
    if needs.needs_torch and "torch" not in item.packages:
        torch = choose_torch(needs, item.markers)
    elif build and any(name in item.missing for name in TORCH_FAMILY):
        torch = source(needs, build, [])
    hashes = needs.requirements.hashes
    lines = [line + hashes.get(name, "") for name, lines in item.missing.items() for line in lines]
    args = _args(needs, item, "overlay", torch.get("build") or item.torch_label, facts)
    args |= _installed(needs, lines, torch)
    args["constraints"] += pins
    if "torch" in item.packages:
        args["need_mib"] = need_mib(needs, {}, list(item.missing))
    if item.entry.get("is_venv"):
        # A venv made from a venv sees only the base interpreter.
        args["parent_sites"] = list(item.entry.get("sites") or ())
    count = len(item.missing)
    why = (
        f"installing {count} missing package{'s' * (count > 1)}"
        f" ({one_line(', '.join(item.missing), 120)}) on top of {item}"
    )
    return EnvironmentPlan("overlay", why, args["key"], args=args, notes=tuple(notes))


def venv(
    needs: Needs, item: Candidate, facts: Mapping[str, Any], notes: Sequence[str], because: str
) -> EnvironmentPlan:
    torch = choose_torch(needs, item.markers)
    hashes = needs.requirements.hashes
    lines = [
        plain(one) + hashes.get(canonical(one.name), "") for one in needs.applicable(item.markers)
    ]
    args = _args(needs, item, "venv", torch.get("build") or "default", facts)
    args |= _installed(needs, [*lines, *needs.requirements.unnamed], torch)
    about = f"; torch: {torch['reason']}" if torch else ""
    why = f"building a venv of {item}: {because}{about}"
    return EnvironmentPlan("venv", why, args["key"], args=args, notes=tuple(notes))


def _installed(needs: Needs, lines: Sequence[str], torch: Mapping[str, Any]) -> dict[str, Any]:
    late = list((needs.resolution or {}).get("late") or ())
    return {
        "install": [line for line in lines if line not in late],
        "late": late,
        "torch": dict(torch),
        "need_mib": need_mib(needs, torch),
    }


def _args(
    needs: Needs, item: Candidate, kind: str, build: str, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What every kind of plan tells the agent."""
    entry = item.entry
    names = list(dict.fromkeys(canonical(one.name) for one in needs.applicable(item.markers)))
    needs_torch = needs.needs_torch or item.brings_torch
    known = {*names, *needs.comes}
    modules = [module for name, module in MODULES.items() if name in known]
    parts = [needs.requirements_hash, kind, item.path, entry.get("version"), build]
    return {
        "key": _key(parts + [needs.refreshed] * bool(needs.refreshed), facts),
        "kind": kind,
        "python": item.path,
        "version": entry.get("version"),
        "requirements_hash": needs.requirements_hash,
        "wanted": needs.wanted,
        "names": names,
        "detail": names_with_extras(needs.requirements),
        "needs_torch": needs_torch,
        "imports": list(dict.fromkeys(["torch", *modules])) if needs_torch else [],
        "constraints": [str(limit) for limit in needs.requirements.constraints],
        "options": list(needs.requirements.options),
        "helpers": _helpers(facts or {}),
        "older": _older(needs, item, facts or {}),
    }


def _helpers(facts: Mapping[str, Any]) -> list[str]:
    """Interpreters whose pip may install for another."""
    return [
        str(other["path"])
        for other in facts.get("interpreters") or ()
        if other.get("has_pip") and not other.get("problem")
    ][:MAX_NOTES]


def _older(needs: Needs, item: Candidate, facts: Mapping[str, Any]) -> str:
    """What to propose where a package takes no python as new as this one."""
    entries = (facts.get("inspection") or {}).get("interpreters") or [item.entry]
    unset = [{**entry, "configured": False} for entry in entries]
    found = best_to_build(needs, usable(needs, unset)[0], uv=True)
    older = [other for other in found if other.version[:2] < item.version[:2]]
    return f"{older[0].path} (python {older[0].entry.get('version')})" if older else ""


def _public(line: str) -> str:
    """torch==2.7.1+cu118 stands on torch's own index alone; what it brings does not depend on the
    build."""
    name, is_pinned, version = line.partition("==")
    return f"{name}=={version.partition('+')[0]}" if is_pinned and "@" not in name else line


def _key(parts: list[Any], facts: Mapping[str, Any] | None) -> str:
    """A spoilt environment is built anew in its place, but beside it while a training may still be
    using it."""
    records = {record.get("key"): record for record in (facts or {}).get("environments") or ()}
    runs_live = any(
        run.get("state") in ("queued", "running") for run in (facts or {}).get("runs") or ()
    )
    while True:
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        record = records.get(key)
        if not runs_live or record is None or not record.get("ready") or record.get("valid"):
            return key
        parts = [*parts, "again"]
