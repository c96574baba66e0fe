"""Decides about the environment: keep, use an interpreter as it is, install what it lacks, or
build. Facts in, plan out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from remote.deploy.build_plan import as_is, conda, overlay, resolve, venv
from remote.deploy.candidates import MAX_NOTES, Candidate, best_to_build, usable
from remote.deploy.needs import Known, Needs, needs_of
from remote.deploy.torch_builds import torch_problem
from remote.errors import EnvironmentFailed
from remote.link.answers import Resolution
from remote.link.facts import Environment, Facts
from remote.records import EnvironmentPlan, Settings
from remote.requirements.lines import CONDA, requirements_hash
from remote.requirements.parsed import parse_requirements

KEPT = "environment kept: requirements unchanged"


def plan_environment(
    known: Known, settings: Settings, requirements_text: str, refresh: bool = False
) -> EnvironmentPlan:
    """The plan of kind `inspect-first` asks for known.inspection; `inspection_detail` tells what to
    ask for. That of kind `resolve-first` asks for known.resolution. `refresh`: nothing is kept.

    Raises UsageError for wrong requirements, EnvironmentFailed or GpuUnfit where no environment can
    be had.
    """
    facts = known.facts
    kept, changed = find_kept(facts, settings, requirements_hash(requirements_text))
    notes = _notes(facts, requirements_text)
    if kept is not None and not refresh:
        return EnvironmentPlan("keep", KEPT, kept.key, notes=notes)
    asks_nothing = not re.search(rf"^(?:[^-\s]|{CONDA} )", requirements_text, re.M)
    if not asks_nothing and known.inspection is None:
        return EnvironmentPlan("inspect-first", "looking at what the server's interpreters have")
    needs = needs_of(known, settings, requirements_text)
    if refresh:
        needs = replace(needs, refreshed=str(facts.system.time))
    if asks_nothing:
        plan = _plan_bare(needs, known)
    elif needs.requirements.conda:
        plan = conda(needs, known)
    else:
        plan = _plan_inspected(needs, known)
    notes += (f"the environment of before is not used: {changed}",) if changed else ()
    return EnvironmentPlan(plan.kind, plan.why, plan.key, args=plan.args, notes=notes + plan.notes)


def inspection_detail(requirements_text: str) -> list[str]:
    """The argument `detail` of environment_inspect: what to follow to everything that it needs."""
    return parse_requirements(requirements_text).names_with_extras


def _notes(facts: Facts, text: str) -> tuple[str, ...]:
    """What holds in every run, whatever environment it has."""
    path = facts.system.pythonpath
    notes = (f"PYTHONPATH is set there: runs import from {path} first",) if path else ()
    names = dict.fromkeys(re.findall(r"\$\{([A-Z0-9_]+)\}", text))
    return notes + tuple(f"${{{name}}} is not set here: pip takes the server's" for name in names)


def find_kept(
    facts: Facts, settings: Settings, digest: str
) -> tuple[Environment | None, str | None]:
    """The newest environment that was made for the same and still holds; or None, and why one that
    was made is passed over."""
    wanted = {"python": settings.python, "torch": settings.torch}
    made = [one for one in facts.environments if one.ready and one.requirements_hash == digest]
    changed: str | None = None
    for one in sorted(made, key=lambda one: one.built, reverse=True):
        if one.wanted != wanted:
            continue
        if not one.valid:
            changed = changed or one.changed or "it changed"
            continue
        problem = torch_problem(one.torch, settings.torch, facts.gpus) if one.needs_torch else None
        if problem is None:
            return one, None
        changed = changed or problem
    return None, changed


def _plan_bare(needs: Needs, known: Known) -> EnvironmentPlan:
    """No packages are asked for: any interpreter will do, and nothing is built."""
    found, notes = usable(needs, known.facts.interpreters)
    configured = [item for item in found if item.python.configured]
    best = (configured or best_to_build(needs, found, uv=True))[0]
    return as_is(needs, best, f"{best} is used as it is: no packages are asked for", notes)


def _plan_inspected(needs: Needs, known: Known) -> EnvironmentPlan:
    found, notes = usable(needs, known.interpreters)
    configured = next((item for item in found if item.python.configured), None)
    if configured is not None:
        return _plan_configured(needs, configured, known, notes)
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
        return overlay(needs, best, known, notes)
    builders = best_to_build(needs, found, uv=bool(known.inspection and known.inspection.uv))
    if needs.resolution is None:
        return resolve(needs, builders, known)
    chosen = _resolved(needs, builders, notes)
    return venv(needs, chosen, known, notes, "no interpreter there has what is required")


def _resolved(needs: Needs, builders: Sequence[Candidate], notes: list[str]) -> Candidate:
    """The first that can have all that is required; else the best, whose build will say why not."""
    resolution = needs.resolution or Resolution()
    chosen = next((item for item in builders if item.path == resolution.python), None)
    if chosen is not None:
        notes += [f"passed over {': '.join(told)}" for told in resolution.failed]
    return chosen or builders[0]


def _plan_configured(
    needs: Needs, item: Candidate, known: Known, notes: Sequence[str]
) -> EnvironmentPlan:
    """remote.python is always the base."""
    if not item.missing and not item.torch_problem:
        why = f"{item}, remote.python, has all that is required and is used as it is"
        return as_is(needs, item, why, notes)
    if item.torch_problem and needs.settings.torch == "auto":
        gpus = needs.report.gpus
        has = (
            ""
            if item.python.torch.cuda
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
        return resolve(needs, [item], known)
    if item.torch_problem or ("torch" in item.packages and "torch" in item.missing):
        other = f"its torch {item.packages.get('torch')} is not of the version required"
        return venv(needs, item, known, notes, item.torch_problem or other)
    return overlay(needs, item, known, notes)
