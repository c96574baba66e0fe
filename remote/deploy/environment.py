"""Decides about the environment: keep, use an interpreter as it is, install what it lacks, or
build. Facts in, plan out.

An environment's key is made of the requirements, the interpreter and the torch build.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remote.agent.shared.text import redact
from remote.deploy import gpus
from remote.deploy import requirements_file as files
from remote.deploy.requirements_file import Requirements, applicable, canonical, parse_requirements
from remote.errors import EnvironmentFailed, GpuUnfit
from remote.records import EnvironmentPlan, GpuReport, Settings
from remote.screen.text import one_line

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Record = Mapping[str, Any]
TORCH_INDEX = "https://download.pytorch.org/whl/"
TORCH_FAMILY = ("torch", "torchvision", "torchaudio")
"""Made for each other: they come from one index, and none of them is replaced alone."""
MODULES = {name: name for name in (*TORCH_FAMILY, "torchmetrics", "lightning")} | {
    "pytorch-lightning": "pytorch_lightning"
}
"""What is imported to prove an environment; to require any of them is to require torch."""
OLDEST = (3, 8)
TORCH_OLDEST, TORCH_NEWEST = (3, 10), (3, 14)
"""The trainer's lower bound; the newest python that torch is known to have wheels for."""
CUDA_TORCH_MIB = 7 * 1024
CPU_TORCH_MIB = 1500
SMALL_MIB, PACKAGE_MIB = 200, 50
MAX_NOTES = 5
KEPT = "environment kept: requirements unchanged"


@dataclass(frozen=True)
class Wish:
    """What an environment must have, and for which GPUs."""

    settings: Settings
    requirements: Requirements
    requirements_hash: str
    report: GpuReport
    machine: str
    # pip there was told to ask no index.
    offline: bool = False

    @property
    def names_torch_source(self) -> bool:
        """The requirements (or pip's settings there) say themselves which build of torch it is, or
        where it comes from."""
        own = any(
            option == "--no-index" or re.search(r"/whl/|pytorch", option)
            for option in self.requirements.options
        )
        torch = [line for line in self.requirements.lines if canonical(line.name) == "torch"]
        return self.offline or own or any(line.url or "+" in str(line.specifier) for line in torch)

    @property
    def needs_torch(self) -> bool:
        return any(name in MODULES for name in self.requirements.names)

    @property
    def oldest(self) -> tuple[int, int]:
        return TORCH_OLDEST if self.needs_torch else OLDEST

    @property
    def wanted(self) -> dict[str, str]:
        return {"python": self.settings.python, "torch": self.settings.torch}


@dataclass(frozen=True)
class Candidate:
    """An interpreter, judged. `missing`: canonical name → lines to install; `torch_problem`: why
    its torch won't do."""

    entry: Record
    order: int
    missing: Mapping[str, Sequence[str]]
    torch_problem: str | None = None

    @property
    def path(self) -> str:
        return str(self.entry["path"])

    @property
    def version(self) -> tuple[int, ...]:
        return _version(self.entry)

    @property
    def packages(self) -> Mapping[str, str]:
        return dict(self.entry.get("packages") or {})

    @property
    def has_torch(self) -> bool:
        """A torch that can stay: of a version that is asked for, and fit for the GPUs."""
        return (
            self.torch_problem is None and "torch" in self.packages and "torch" not in self.missing
        )


def plan_environment(
    facts: Mapping[str, Any], settings: Settings, requirements_text: str
) -> EnvironmentPlan:
    """The plan of kind `inspect-first` asks for facts["inspection"]; `inspection_detail` tells what
    to ask for.

    Raises UsageError for wrong requirements, EnvironmentFailed or GpuUnfit where no environment can
    be had.
    """
    digest = files.requirements_hash(requirements_text)
    report = gpus.parse_gpus(facts.get("gpu") or {})
    kept, changed = find_kept(facts, settings, digest, report)
    if kept is not None:
        return EnvironmentPlan("keep", KEPT, str(kept["key"]), environment=kept)
    asks_nothing = not any(
        line.text for line in files.split_lines(requirements_text) if not line.text.startswith("-")
    )
    if not asks_nothing and "inspection" not in facts:
        return EnvironmentPlan("inspect-first", "looking at what the server's interpreters have")
    machine = str((facts.get("system") or {}).get("machine") or "x86_64")
    told = str(
        ((facts.get("inspection") or {}).get("pip_config") or {}).get("no-index") or ""
    ).lower()
    wish = Wish(
        settings,
        parse_requirements(requirements_text),
        digest,
        report,
        machine,
        told in ("1", "true", "yes", "on"),
    )
    plan = _plan_bare(wish, facts) if asks_nothing else _plan_inspected(wish, facts)
    note = (f"the environment of before is not used: {changed}",) if changed else ()
    return EnvironmentPlan(plan.kind, plan.why, plan.key, args=plan.args, notes=note + plan.notes)


def inspection_detail(requirements_text: str) -> list[str]:
    """The argument `detail` of environment_inspect: what to follow to everything that it needs."""
    return files.names_with_extras(parse_requirements(requirements_text))


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


def torch_problem(torch: Mapping[str, Any], wanted: str, report: GpuReport) -> str | None:
    """Why an installed torch won't do for what remote.torch says and for the GPUs there; None if it
    may."""
    name = f"torch {torch.get('version') or '–'}"
    cuda, hip = torch.get("cuda"), torch.get("hip")
    if wanted == "cpu" or not torch:
        return None
    if wanted.startswith("cu") and wanted != _cuda_name(cuda):
        return (
            f"{name} is a build for {'CUDA ' + str(cuda) if cuda else 'the CPU'}, and remote.torch"
            f" is {wanted}"
        )
    if not report.gpus or hip:
        return None
    if not cuda:
        return f"{name} is a CPU build"
    if not gpus.build_fits(str(cuda), report.driver_version, _capabilities(report)):
        return f"{name} (CUDA {cuda}) does not fit {_about(report)}"
    return None


def _plan_bare(wish: Wish, facts: Mapping[str, Any]) -> EnvironmentPlan:
    """No packages are asked for: any interpreter will do, and nothing is built."""
    entries = [entry for entry in facts.get("interpreters") or () if isinstance(entry, Mapping)]
    usable, notes = _usable(wish, entries)
    chosen = max(
        usable, key=lambda item: (bool(item.entry.get("configured")), item.version, -item.order)
    )
    return _as_is(
        wish, chosen, f"{_named(chosen)} is used as it is: no packages are asked for", notes
    )


def _plan_inspected(wish: Wish, facts: Mapping[str, Any]) -> EnvironmentPlan:
    inspection = facts["inspection"]
    usable, notes = _usable(wish, inspection.get("interpreters") or ())
    configured = next((item for item in usable if item.entry.get("configured")), None)
    if configured is not None:
        return _plan_configured(wish, configured, facts, notes)
    ready = [item for item in usable if not item.missing and not item.torch_problem]
    if ready:
        best = max(ready, key=lambda item: (item.version, -item.order))
        return _as_is(
            wish, best, f"{_named(best)} has all that is required and is used as it is", notes
        )
    notes += [
        f"passed over {item.path}: {item.torch_problem}" for item in usable if item.torch_problem
    ][:MAX_NOTES]
    bases = [item for item in usable if wish.needs_torch and item.has_torch]
    if bases:
        best = min(
            bases,
            key=lambda item: (len(item.missing), tuple(-part for part in item.version), item.order),
        )
        return _overlay(wish, best, facts, notes)
    uv = bool(inspection.get("uv"))
    best = max(usable, key=lambda item: _rank_as_base(item, wish, uv))
    return _venv(wish, best, facts, notes, "no interpreter there has what is required")


def _plan_configured(
    wish: Wish, item: Candidate, facts: Mapping[str, Any], notes: Sequence[str]
) -> EnvironmentPlan:
    """remote.python is always the base."""
    if not item.missing and not item.torch_problem:
        return _as_is(
            wish,
            item,
            f"{_named(item)}, remote.python, has all that is required and is used as it is",
            notes,
        )
    if item.torch_problem and wish.settings.torch == "auto":
        gpus = wish.report.gpus
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
    if item.torch_problem or ("torch" in item.packages and "torch" in item.missing):
        return _venv(
            wish,
            item,
            facts,
            notes,
            item.torch_problem
            or f"its torch {item.packages['torch']} is not of the version required",
        )
    return _overlay(wish, item, facts, notes)


def _usable(wish: Wish, entries: Iterable[Record]) -> tuple[list[Candidate], list[str]]:
    """The interpreters to choose from, judged, and notes about those left out. Raises
    EnvironmentFailed if there are none."""
    usable: list[Candidate] = []
    notes: list[str] = []
    for order, entry in enumerate(entries):
        problem = entry.get("problem")
        if not problem and _version(entry)[:2] < wish.oldest:
            needs = "torch's requirements need" if wish.needs_torch else "the project needs"
            problem = f"it is python {entry.get('version')}, {needs} {_dotted(wish.oldest)}"
        if not problem:
            usable.append(_judge(wish, entry, order))
        elif entry.get("configured"):
            message = (
                f"remote.python can't be used: {entry.get('path')}: {one_line(str(problem), 300)}"
            )
            raise EnvironmentFailed(
                message,
                step="environment",
                remedy="set remote.python to an interpreter that works, or to nothing",
            )
        else:
            notes.append(f"passed over {entry.get('path')}: {one_line(str(problem), 200)}")
    if not usable:
        found = "; ".join(notes) or "none was found"
        raise EnvironmentFailed(
            f"no python ≥ {_dotted(wish.oldest)} on the server: {found}",
            step="environment",
            remedy="install one there (miniforge needs no root) and set remote.python to its path",
        )
    return usable, notes[:MAX_NOTES]


def _judge(wish: Wish, entry: Record, order: int) -> Candidate:
    if "packages" not in entry:
        return Candidate(entry, order, {})
    installed = files.Installed(
        *(entry.get(name) or {} for name in ("packages", "requires", "urls", "markers"))
    )
    missing = installed.find_missing(wish.requirements)
    missing = missing | {redact(address): [address] for address in wish.requirements.unnamed}
    problem = (
        torch_problem(entry.get("torch") or {}, wish.settings.torch, wish.report)
        if wish.needs_torch
        else None
    )
    return Candidate(entry, order, missing, problem)


def _rank_as_base(item: Candidate, wish: Wish, uv: bool) -> tuple[object, ...]:
    """Of what a venv is made: what can make one, a python that torch has wheels for, the newest, no
    venv itself."""
    makes = bool(uv or item.entry.get("has_venv") or item.entry.get("has_virtualenv"))
    known = not wish.needs_torch or item.version[:2] <= TORCH_NEWEST
    return makes, known, item.version, not item.entry.get("is_venv"), -item.order


def _as_is(wish: Wish, item: Candidate, why: str, notes: Sequence[str]) -> EnvironmentPlan:
    args = _args(wish, item, "as-is", _torch_label(item))
    return EnvironmentPlan("as-is", why, args["key"], args=args, notes=tuple(notes))


def _overlay(
    wish: Wish, item: Candidate, facts: Mapping[str, Any], notes: Sequence[str]
) -> EnvironmentPlan:
    """A venv that sees the interpreter's own packages; its torch is pinned, so that nothing
    replaces it."""
    family = [name for name in TORCH_FAMILY if name in item.packages and name not in item.missing]
    pins = [f"{name}=={item.packages[name]}" for name in family]
    tag = item.packages.get("torch", "").partition("+")[2]
    absent = [name for name in TORCH_FAMILY if name in item.missing]
    torch: dict[str, Any] = {}
    brings_torch = wish.needs_torch and "torch" not in item.packages
    if brings_torch:
        torch = _torch(wish, item)
    elif absent and (tag == "cpu" or tag.startswith(("cu", "rocm"))):
        torch = _from_index(tag, [line for name in absent for line in item.missing[name]])
    inside = torch.get("requirements") or ()
    asked = wish.requirements.hashes
    install = [
        line + asked.get(name, "")
        for name, lines in item.missing.items()
        for line in lines
        if line not in inside
    ]
    need = _need_mib(wish, torch) if brings_torch else SMALL_MIB + PACKAGE_MIB * len(item.missing)
    args = _args(wish, item, "overlay", torch.get("build") or _torch_label(item), facts)
    args |= {
        "install": install,
        "constraints": [*args["constraints"], *pins],
        "torch": torch,
        "need_mib": need,
    }
    if item.entry.get("is_venv"):
        # A venv made from a venv sees only the base interpreter.
        args["parent_sites"] = list(item.entry.get("sites") or ())
    count = len(item.missing)
    why = (
        f"installing {count} missing package{'s' * (count > 1)}"
        f" ({one_line(', '.join(item.missing), 120)}) on top of {_named(item)}"
    )
    return EnvironmentPlan("overlay", why, args["key"], args=args, notes=tuple(notes))


def _venv(
    wish: Wish, item: Candidate, facts: Mapping[str, Any], notes: Sequence[str], because: str
) -> EnvironmentPlan:
    torch = _torch(wish, item) if wish.needs_torch else {}
    inside = torch.get("requirements") or ()
    args = _args(wish, item, "venv", torch.get("build") or "default", facts)
    wanted = [
        one
        for one in applicable(wish.requirements.lines, dict(item.entry.get("markers") or {}))
        if _plain(one) not in inside
    ]
    lines = [
        f"{_plain(one)}{wish.requirements.hashes.get(canonical(one.name), '')}" for one in wanted
    ] + list(wish.requirements.unnamed)
    args |= {"install": lines, "torch": torch, "need_mib": _need_mib(wish, torch)}
    about = f"; torch: {torch['reason']}" if wish.needs_torch else ""
    return EnvironmentPlan(
        "venv",
        f"building a venv of {_named(item)}: {because}{about}",
        args["key"],
        args=args,
        notes=tuple(notes),
    )


def _args(
    wish: Wish, item: Candidate, kind: str, build: str, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What every kind of plan tells the agent."""
    entry = item.entry
    here = applicable(wish.requirements.lines, entry.get("markers") or {})
    names = list(dict.fromkeys(canonical(requirement.name) for requirement in here))
    modules = [module for name, module in MODULES.items() if name in names]
    helpers = [
        other["path"]
        for other in (facts or {}).get("interpreters") or ()
        if other.get("has_pip") and not other.get("problem")
    ]
    return {
        "key": _key([wish.requirements_hash, kind, item.path, entry.get("version"), build], facts),
        "kind": kind,
        "python": item.path,
        "version": entry.get("version"),
        "requirements_hash": wish.requirements_hash,
        "wanted": wish.wanted,
        "names": names,
        "needs_torch": wish.needs_torch,
        "imports": list(dict.fromkeys(["torch", *modules])) if wish.needs_torch else [],
        "constraints": [str(limit) for limit in wish.requirements.constraints],
        "options": list(wish.requirements.options),
        "helpers": helpers[:MAX_NOTES],
    }


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


def _torch(wish: Wish, item: Candidate) -> dict[str, Any]:
    """Which torch to install, from where, and why that one."""
    wanted = wish.settings.torch
    if wanted == "auto" and wish.names_torch_source:
        return {"build": "own", "reason": "from where the requirements or pip's settings say"}
    if wanted != "auto":
        choice = gpus.TorchBuild(wanted, f"{wanted}, as remote.torch says")
    else:
        choice = gpus.torch_build_for(
            wish.report.driver_version, _capabilities(wish.report), wish.machine
        )
    if choice.problem:
        remedy = "ask for a newer driver, or set remote.torch: cpu to train on the CPU"
        raise GpuUnfit(choice.problem, step="environment", remedy=remedy)
    if choice.name is None:
        return {"build": "default", "reason": choice.reason}
    here = applicable(wish.requirements.lines, item.entry.get("markers") or {})
    lines = [
        _plain(requirement)
        for requirement in here
        if canonical(requirement.name) in TORCH_FAMILY and not requirement.url
    ]
    if not any(canonical(requirement.name) == "torch" for requirement in here):
        lines.insert(0, "torch")
    return _from_index(choice.name, lines) | {"reason": choice.reason}


def _from_index(build: str, lines: list[str]) -> dict[str, Any]:
    return {
        "index": TORCH_INDEX + build,
        "build": build,
        "requirements": lines,
        "pins": list(TORCH_FAMILY),
    }


def _plain(requirement: Requirement) -> str:
    """Without its marker, which is known to hold."""
    return str(requirement).partition(" ; ")[0].partition("; ")[0]


def _need_mib(wish: Wish, torch: Mapping[str, Any]) -> int:
    if not wish.needs_torch:
        return SMALL_MIB + PACKAGE_MIB * len(wish.requirements.names)
    return CPU_TORCH_MIB if torch.get("build") == "cpu" else CUDA_TORCH_MIB


def _named(item: Candidate) -> str:
    torch = item.entry.get("torch") or {}
    runtime = (
        f", torch {torch.get('version')}"
        + (f" (CUDA {torch['cuda']})" if torch.get("cuda") else "")
        if torch
        else ""
    )
    return f"{item.path} (python {item.entry.get('version')}{runtime})"


def _torch_label(item: Candidate) -> str:
    torch = item.entry.get("torch") or {}
    return f"{torch.get('version')} {torch.get('cuda')}" if torch else "none"


def _capabilities(report: GpuReport) -> list[float | None]:
    return [gpus.capability(item) for item in report.gpus]


def _about(report: GpuReport) -> str:
    card = report.gpus[0]
    cap = gpus.capability(card)
    return f"driver {report.driver_version or '–'} and {card.name or 'the GPU'}" + (
        f" (compute capability {cap:.1f})" if cap else ""
    )


def _cuda_name(cuda: Any) -> str | None:
    """12.6 → cu126"""
    return "cu" + str(cuda).replace(".", "") if cuda else None


def _version(entry: Record) -> tuple[int, ...]:
    info = entry.get("version_info")
    return (
        tuple(part for part in info if isinstance(part, int))
        if isinstance(info, (list, tuple))
        else ()
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
