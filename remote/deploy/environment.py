"""Decides about the environment: keep, use an interpreter as it is, install what it lacks, or
build. Facts in, plan out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from remote.deploy import gpus
from remote.deploy import requirements_file as files
from remote.deploy.build_plan import as_is, overlay, resolve, venv
from remote.deploy.candidates import MAX_NOTES, Candidate, Record, best_to_build, usable
from remote.deploy.needs import Needs, needs_of
from remote.deploy.torch_builds import torch_problem
from remote.errors import EnvironmentFailed
from remote.records import EnvironmentPlan, GpuReport, Settings

KEPT = "environment kept: requirements unchanged"


def plan_environment(
    facts: Mapping[str, Any], settings: Settings, requirements_text: str, refresh: bool = False
) -> EnvironmentPlan:
    """The plan of kind `inspect-first` asks for facts["inspection"]; `inspection_detail` tells what
    to ask for. That of kind `resolve-first` asks for facts["resolution"]. `refresh`: nothing is
    kept.

    Raises UsageError for wrong requirements, EnvironmentFailed or GpuUnfit where no environment can
    be had.
    """
    digest = files.requirements_hash(requirements_text)
    report = gpus.parse_gpus(facts.get("gpu") or {})
    kept, changed = find_kept(facts, settings, digest, report)
    notes = _notes(facts, requirements_text)
    if kept is not None and not refresh:
        return EnvironmentPlan("keep", KEPT, str(kept["key"]), environment=kept, notes=notes)
    asks_nothing = not any(
        line.text for line in files.split_lines(requirements_text) if not line.text.startswith("-")
    )
    if not asks_nothing and "inspection" not in facts:
        return EnvironmentPlan("inspect-first", "looking at what the server's interpreters have")
    needs = needs_of(facts, settings, requirements_text, report)
    if refresh:
        needs = replace(needs, refreshed=str((facts.get("system") or {}).get("time") or ""))
    plan = _plan_bare(needs, facts) if asks_nothing else _plan_inspected(needs, facts)
    notes += (f"the environment of before is not used: {changed}",) if changed else ()
    return EnvironmentPlan(plan.kind, plan.why, plan.key, args=plan.args, notes=notes + plan.notes)


def inspection_detail(requirements_text: str) -> list[str]:
    """The argument `detail` of environment_inspect: what to follow to everything that it needs."""
    return files.names_with_extras(files.parse_requirements(requirements_text))


def _notes(facts: Mapping[str, Any], text: str) -> tuple[str, ...]:
    """What holds in every run, whatever environment it has."""
    path = (facts.get("system") or {}).get("pythonpath")
    notes = (f"PYTHONPATH is set there: runs import from {path} first",) if path else ()
    names = dict.fromkeys(re.findall(r"\$\{([A-Z0-9_]+)\}", text))
    return notes + tuple(f"${{{name}}} is not set here: pip takes the server's" for name in names)


def find_kept(
    facts: Mapping[str, Any], settings: Settings, digest: str, report: GpuReport
) -> tuple[Record | None, str | None]:
    """The newest environment that was made for the same and still holds; or None, and why one that
    was made is passed over."""
    wanted = {"python": settings.python, "torch": settings.torch}
    made = [
        record
        for record in facts.get("environments") or ()
        if record.get("ready") and record.get("requirements_hash") == digest
    ]
    made.sort(key=lambda record: float(record.get("built") or 0), reverse=True)
    changed: str | None = None
    for record in made:
        if record.get("wanted") != wanted:
            continue
        if not record.get("valid"):
            changed = changed or str(record.get("changed") or "it changed")
            continue
        problem = (
            torch_problem(record.get("torch") or {}, settings.torch, report)
            if record.get("needs_torch")
            else None
        )
        if problem is None:
            return record, None
        changed = changed or problem
    return None, changed


def _plan_bare(needs: Needs, facts: Mapping[str, Any]) -> EnvironmentPlan:
    """No packages are asked for: any interpreter will do, and nothing is built."""
    entries = [entry for entry in facts.get("interpreters") or () if isinstance(entry, Mapping)]
    found, notes = usable(needs, entries)
    configured = [item for item in found if item.entry.get("configured")]
    best = (configured or best_to_build(needs, found, uv=True))[0]
    return as_is(needs, best, f"{best} is used as it is: no packages are asked for", notes)


def _plan_inspected(needs: Needs, facts: Mapping[str, Any]) -> EnvironmentPlan:
    inspection = facts["inspection"]
    found, notes = usable(needs, inspection.get("interpreters") or ())
    configured = next((item for item in found if item.entry.get("configured")), None)
    if configured is not None:
        return _plan_configured(needs, configured, facts, notes)
    ready = [item for item in found if not item.missing and not item.torch_problem]
    if ready:
        best = max(ready, key=lambda item: (item.version, -item.order))
        return as_is(needs, best, f"{best} has all that is required and is used as it is", notes)
    notes += [
        f"passed over {item.path}: {item.torch_problem}" for item in found if item.torch_problem
    ][:MAX_NOTES]
    bases = [item for item in found if needs.needs_torch and item.has_torch]
    if bases:
        best = min(
            bases,
            key=lambda item: (len(item.missing), tuple(-part for part in item.version), item.order),
        )
        return overlay(needs, best, facts, notes)
    builders = best_to_build(needs, found, uv=bool(inspection.get("uv")))
    if needs.resolution is None:
        return resolve(needs, builders, facts)
    chosen = _resolved(needs, builders, notes)
    return venv(needs, chosen, facts, notes, "no interpreter there has what is required")


def _resolved(needs: Needs, builders: Sequence[Candidate], notes: list[str]) -> Candidate:
    """The first that can have all that is required; else the best, whose build will say why not."""
    resolution = needs.resolution or {}
    chosen = next((item for item in builders if item.path == resolution.get("python")), None)
    if chosen is not None:
        notes += [f"passed over {path}: {why}" for path, why in resolution.get("failed") or ()]
    return chosen or builders[0]


def _plan_configured(
    needs: Needs, item: Candidate, facts: Mapping[str, Any], notes: Sequence[str]
) -> EnvironmentPlan:
    """remote.python is always the base."""
    if not item.missing and not item.torch_problem:
        why = f"{item}, remote.python, has all that is required and is used as it is"
        return as_is(needs, item, why, notes)
    if item.torch_problem and needs.settings.torch == "auto":
        gpus = needs.report.gpus
        has = (
            ""
            if (item.entry.get("torch") or {}).get("cuda")
            else f", but the server has {len(gpus)} GPU(s) ({gpus[0].name or '–'})"
        )
        raise EnvironmentFailed(
            f"{item.path}: {item.torch_problem}{has}",
            step="environment",
            remedy=(
                "install a fitting torch into it, or empty remote.python so that an environment is"
                " built, or set remote.torch: cpu to train on the CPU all the same"
            ),
        )
    keeps_torch = needs.needs_torch and item.has_torch
    if needs.resolution is None and not keeps_torch:
        return resolve(needs, [item], facts)
    if item.torch_problem or ("torch" in item.packages and "torch" in item.missing):
        other = f"its torch {item.packages.get('torch')} is not of the version required"
        return venv(needs, item, facts, notes, item.torch_problem or other)
    return overlay(needs, item, facts, notes)
