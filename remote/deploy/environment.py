"""Decides about the environment: keep, use an interpreter as it is, install what it lacks, or
build. Facts in, plan out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from remote.agent.shared.environment import Environment
from remote.deploy.build_plan import as_is, ask_first, conda, overlay, venv
from remote.deploy.candidates import MAX_NOTES, Candidate, best_to_build, usable
from remote.deploy.needs import Known, Needs
from remote.deploy.torch_builds import torch_problem
from remote.errors import EnvironmentFailed
from remote.link.answers import Resolution
from remote.link.facts import Facts
from remote.records import Asked, EnvironmentPlan, Settings
from remote.requirements.lines import in_release, requirements_hash
from remote.requirements.parsed import parse_requirements
from remote.screen.text import one_line

KEPT = "environment kept: requirements unchanged"


def plan_environment(
    known: Known, settings: Settings, requirements_text: str, refresh: bool = False
) -> EnvironmentPlan:
    """The plan of kind `inspect-first` asks for known.inspection, that of kind `resolve-first` for
    known.resolution, or for known.on_top where it is one of an overlay. `refresh`: nothing is kept.

    Raises UsageError for wrong requirements, EnvironmentFailed or GpuUnfit where no environment can
    be had.
    """
    facts, digest = known.facts, requirements_hash(requirements_text)
    kept, changed = find_kept(facts, settings, digest)
    notes = _notes(facts, requirements_text)
    if kept is not None and not refresh:
        return EnvironmentPlan("keep", KEPT, kept.key, notes=tuple(notes))
    asked = parse_requirements(in_release(requirements_text, facts.root.path))
    if known.inspection is None:
        why = "looking at what the server's interpreters have"
        return EnvironmentPlan("inspect-first", why, detail=asked.names_with_extras)
    needs = Needs(known, settings, asked, digest, str(facts.system.time) if refresh else "")
    notes += [f"the environment of before is not used: {changed}"] if changed else []
    if needs.requirements.conda:
        plan = conda(needs)
    else:
        found = usable(needs, notes)
        if not (asked.lines or asked.unnamed):
            best = best_to_build(needs, found)[0]
            plan = as_is(needs, best, f"{best} is used as it is: no packages are asked for")
        else:
            plan = _plan_any(needs, found, notes)
    return replace(plan, notes=tuple(notes))


def _notes(facts: Facts, text: str) -> list[str]:
    """What holds in every run, whatever environment it has."""
    path = facts.system.pythonpath
    notes = [f"PYTHONPATH is set there: runs import from {path} first"] if path else []
    names = dict.fromkeys(re.findall(r"\$\{([A-Z0-9_]+)\}", text))
    return notes + [f"${{{name}}} is not set here: pip takes the server's" for name in names]


def plan_before(
    facts: Facts, settings: Settings, text: str, asked: Asked
) -> tuple[EnvironmentPlan | None, str]:
    """For a run that goes on: the environment that it has had, or None where it is to have today's;
    and what is to be said of that, empty where both are the same. `text`: today's requirements."""
    digest, key = requirements_hash(text), asked.environment_key
    own = next((one for one in facts.environments if one.ready and one.key == key), None)
    today, _ = find_kept(facts, settings, digest)
    if own is None and asked.requirements_hash != digest:  # on another server than before
        own, _ = find_kept(facts, settings, asked.requirements_hash)
    if not key or (today is not None and today.key == key):
        return None, ""
    if own is None:
        problem: str | None = "its environment is not there"
    elif not own.valid:
        problem = own.changed or "it changed"
    elif own.wanted != {"python": settings.python, "torch": settings.torch}:
        problem = "remote.python or remote.torch has changed"
    else:
        problem = torch_problem(own.torch, settings.torch, facts.gpus) if own.needs_torch else None
    if own is None or problem is not None:
        same = asked.requirements_hash == digest
        return None, "" if same else f"it goes on with today's packages, not its own: {problem}"
    why = "it goes on with its own packages; --with-new-code would take today's"
    plan = EnvironmentPlan("keep", "environment kept: the run's own", own.key)
    return replace(plan, notes=tuple(_notes(facts, text))), why


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


def _plan_any(needs: Needs, found: Sequence[Candidate], notes: list[str]) -> EnvironmentPlan:
    """What one has is used; what it lacks is laid on a torch that can stay; else a venv is made."""
    ready = [item for item in found if not item.missing and not item.torch_problem]
    if ready:
        best = max(ready, key=lambda item: (item.version_info, -item.order))
        return as_is(needs, best, f"{best} has all that is required and is used as it is")
    require_installer(needs)
    if found[0].configured and found[0].torch_problem and needs.settings.torch == "auto":
        raise _unfit(needs, found[0])
    unfit = [(item.path, item.unfit_torch) for item in found if item.unfit_torch]
    notes += [f"passed over {path}: {why}" for path, why in unfit][:MAX_NOTES]
    bases = [item for item in found if needs.needs_torch and item.has_torch]
    if bases:
        best = min(
            bases,
            key=lambda item: (
                len(item.missing),
                tuple(-part for part in item.version_info),
                item.order,
            ),
        )
        plan, because = _on_top(needs, best)
        if plan is not None:
            return plan
        notes.append(f"passed over {best.path}: {because}")
    builders = best_to_build(needs, found)
    resolution = needs.resolution
    # Where none can have all that is required, the build of the best will say why.
    told = resolution or Resolution()
    chosen = next((item for item in builders if item.path == told.python), None)
    if chosen is not None:
        notes += [f"passed over {': '.join(one[:2])}" for one in told.failed]
    best = chosen or builders[0]
    plan = venv(needs, best, "no interpreter there has what is required")
    if resolution is None:
        return ask_first(plan, builders)
    has_none = not best.torch_problem and not (needs.needs_torch and "torch" in best.packages)
    plan = overlay(needs, best) if best.configured and has_none else plan
    doubts = [one[1:] for one in told.failed if one[2:] and chosen is None]
    return replace(plan, doubt=doubts[0] if doubts else ())


def require_installer(needs: Needs) -> None:
    """Raises EnvironmentFailed where nothing there can make a venv or install a package."""
    told = needs.known.inspection
    if told is None or told.uv or told.virtualenv:
        return
    able = (one.has_pip or one.has_venv or one.has_virtualenv for one in told.interpreters)
    if not any(able):
        raise EnvironmentFailed(
            "no python on the server has pip or ensurepip, and there is no uv",
            step="environment",
            remedy=(
                "ask for `apt install python3-venv` there, or set remote.python to a conda python"
            ),
        )


def _on_top(needs: Needs, item: Candidate) -> tuple[EnvironmentPlan | None, str]:
    """What to do to install beside the interpreter's torch; None, and why, where that torch can't
    stay."""
    plan, told = overlay(needs, item), needs.known.on_top
    if told is None and not needs.is_lock:
        return ask_first(plan, [item]), ""
    if told is not None and told.failed:
        torch = item.torch.version
        return None, f"its torch {torch} can't stay: {one_line(told.failed[0][1], 300)}"
    return plan, ""


def _unfit(needs: Needs, item: Candidate) -> EnvironmentFailed:
    """Of remote.python: another torch in it is its owner's business."""
    gpus = needs.report.gpus
    has = ""
    if not item.torch.cuda:
        has = f", but the server has {len(gpus)} GPU(s) ({gpus[0].name or '–'})"
    return EnvironmentFailed(
        f"{item.path}: {item.torch_problem}{has}",
        step="environment",
        remedy=(
            "install a fitting torch into it, or empty remote.python so that an environment is"
            " built, or set remote.torch: cpu to train on the CPU all the same"
        ),
    )
