"""`deploy`: facts → release → environment → proof → summary. Each step says what it did, or why it
did nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from remote.deploy import environment, gpus, proofs, requirements_file
from remote.deploy.requirements_forms import local_packages
from remote.errors import ProtocolError, RemoteError, ServerUnfit
from remote.link.sending import Sending, known_parts, waiting_note
from remote.link.session import Session, who_am_i
from remote.project.command import describe_command
from remote.project.release import (
    SMALL_MANIFEST,
    ReleasePlan,
    build_release,
    manifest_rows,
    plan_release,
)
from remote.records import EnvironmentPlan, Gpu, GpuReport, Release
from remote.screen.display import Display, duration, show, size
from remote.screen.text import one_line

AGENT_MIB = 1
"""What our own program and records take there."""
EAGER_BYTES = 256 << 10
"""So little is sent without waiting for the server's consent: a refusal costs less than the round
trip."""


@dataclass
class Deployed:
    """What stands on the server after a deploy, and what was done for it: steps as (changed,
    text)."""

    release: Release
    root: str
    facts: Mapping[str, Any]
    gpus: GpuReport
    environment_key: str = ""
    python: str = ""
    prefix: str = ""
    data_path: str | None = None
    images: str = ""
    # Folders of the project's own packages, which each run imports from its own copy.
    local: tuple[str, ...] = ()
    steps: list[tuple[bool, str]] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return any(changed for changed, _ in self.steps)

    def as_json(self, session: Session) -> dict[str, Any]:
        return {
            "host": session.host,
            "root": self.root,
            "release": self.release.tree,
            "environment": self.environment_key,
            "python": self.python,
            "changed": self.changed,
            "steps": [text for _, text in self.steps],
            "left_out": [
                {"path": path, "reason": reason} for path, reason in self.release.left_out
            ],
            "gpus": [gpu_row(item) for item in self.gpus.gpus],
            "requests": session.link.requests if session.link else None,
        }


def deploy(session: Session, data: str | None = None) -> Deployed:
    """Bring the server to the state of this project. `data`: also look for this path there."""
    requirements = read_requirements(session)
    release = build_release_while_opening(session)
    facts = ask_facts(session, release, data)
    deployed = Deployed(
        release, str(facts["root"]["path"]), facts, gpus.parse_gpus(facts.get("gpu") or {})
    )
    deployed.local = tuple(local_packages(requirements))
    found = facts.get("data_path")
    deployed.data_path = found if isinstance(found, str) else None
    if command := describe_command(session.project.settings.command):
        deployed.steps.append((False, command))
    put_release(session, deployed)
    prepare_environment(session, deployed, requirements)
    session.remember_agent()
    return deployed


def build_release_while_opening(session: Session) -> Release:
    """Listing and hashing go on while the login waits for the network."""
    settings = session.project.settings
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            build_release,
            session.project.directory,
            settings.max_file_mib,
            settings.include,
            settings.dest,
        )
        session.open()
        return future.result()


def read_requirements(session: Session) -> str:
    """The text of remote.requirements with what it includes; empty for `none`. Raises UsageError
    for what is wrong in it."""
    name = session.project.settings.requirements
    return (
        ""
        if name in ("", "none")
        else requirements_file.read_requirements(session.project.directory, name)
    )


def ask_facts(session: Session, release: Release | None, data: str | None = None) -> dict[str, Any]:
    """Everything about the server in one call; with a small release, also what of it is missing
    there."""
    arguments: dict[str, Any] = {"python": session.project.settings.python}
    if release is not None:
        arguments["tree"] = release.tree
        if len(release.entries) <= SMALL_MANIFEST:
            arguments["manifest"] = manifest_rows(release)
    if data is not None and data != "synthetic":
        arguments["data"] = data
    facts = session.call_as_owner("facts", **arguments)
    root = facts.get("root")
    if not isinstance(root, dict) or not isinstance(root.get("path"), str):
        raise ServerUnfit("the server tells nothing about the project's root", host=session.host)
    problem = root.get("problem")
    if isinstance(problem, dict) and release is not None:
        raise ServerUnfit(
            str(problem.get("message")),
            host=session.host,
            step="root",
            remedy=problem.get("remedy"),
        )
    return facts


def put_release(session: Session, deployed: Deployed) -> None:
    release = deployed.release
    plan = plan_release(deployed.facts, release)
    label = f"{release.tree[:12]}, {len(release.entries)} files, {size(release.size)}"
    if plan.action == "keep":
        deployed.steps.append((False, f"{plan.why} ({label})"))
        return
    if plan.action == "use":
        session.call_as_owner(
            "release_use", waiting_note(session), tree=release.tree, who=who_am_i()
        )
        deployed.steps.append((True, f"{plan.why} ({label})"))
        return
    deployed.steps.append((True, f"{plan.why}: {send_release(session, deployed, plan)} ({label})"))


def require_room(session: Session, deployed: Deployed) -> None:
    """Known before anything is sent. The server checks again, under its lock."""
    root = deployed.facts["root"]
    need = (2 * sum(max(entry.size, 4096) for entry in deployed.release.entries) >> 20) + AGENT_MIB
    free = root.get("free_mib")
    if isinstance(free, int) and free < need:
        raise ServerUnfit(
            f"the disk at {show(root.get('mount'))} has {free} MiB free, the code needs {need} MiB"
            " there",
            host=session.host,
            step="root",
            remedy="free some space (fab … clean), or set remote.root to another disk",
        )


def send_release(session: Session, deployed: Deployed, plan: ReleasePlan) -> str:
    """Send what is missing; returns how much that was."""
    require_room(session, deployed)
    release = deployed.release
    rows = manifest_rows(release)
    missing, answer = plan.missing, deployed.facts
    if missing is None:
        answer = session.call("release_missing", tree=release.tree, manifest=rows)
        missing = frozenset(answer["missing"])
    started = time.monotonic()
    sending = Sending(session.project.directory, release.entries, missing, known_parts(answer))
    session.call_as_owner(
        "release_put",
        waiting_note(session),
        sending.frames(session.display),
        eager=sending.total <= EAGER_BYTES,
        tree=release.tree,
        manifest=rows,
        origin=release.origin,
        who=who_am_i(),
    )
    session.display.clear()
    return (
        f"{len(sending.contents)} files sent, {size(sending.total)},"
        f" {time.monotonic() - started:.1f} s"
    )


def prepare_environment(session: Session, deployed: Deployed, requirements: str) -> None:
    """Keep, reuse or build the environment, and prove it on the GPU unless the proof still
    holds."""
    facts = deployed.facts
    plan = choose_environment(session, facts, requirements)
    ready: Mapping[str, Any] = plan.environment if plan.kind == "keep" else build(session, plan)
    for note in plan.notes:
        session.display.note(f"note: {note}")
    reason = proofs.proof_needed(ready, facts, deployed.gpus)
    proof = (
        proofs.proof_of(ready, facts)
        if reason is None
        else prove(session, str(ready["key"]), reason)
    )
    ready = {**ready, "proof": proof, "proved": reason is not None}
    changed = bool(ready.get("made")) or reason is not None
    deployed.steps.append((changed, proofs.describe_environment(plan, ready)))
    deployed.environment_key = str(ready["key"])
    deployed.python = str(ready["python"])
    deployed.prefix = str(ready.get("prefix") or "")


def choose_environment(
    session: Session, facts: Mapping[str, Any], requirements: str
) -> EnvironmentPlan:
    """The plan; the server's interpreters are looked into only where nothing can be kept."""
    settings = session.project.settings
    try:
        plan = environment.plan_environment(facts, settings, requirements)
        if plan.kind != "inspect-first":
            return plan
        detail = environment.inspection_detail(requirements)
        inspection = session.call(
            "environment_inspect", show_event(session), configured=settings.python, detail=detail
        )
        session.display.clear()
        return environment.plan_environment(
            {**facts, "inspection": inspection}, settings, requirements
        )
    except RemoteError as error:
        error.host = error.host or session.host
        raise


def build(session: Session, plan: EnvironmentPlan) -> Mapping[str, Any]:
    """Have the agent make it. Returns its record, with `made`: False where it was there already."""
    session.display.note(f"environment: {plan.why}")
    answer = session.call_as_owner("environment_prepare", show_event(session), plan=dict(plan.args))
    session.display.clear()
    return {**_record(answer, "environment", ("key", "python")), "made": bool(answer.get("built"))}


def prove(session: Session, key: str, reason: str) -> Mapping[str, Any]:
    """Have the environment's torch tried on every GPU. Returns the proof."""
    session.display.progress(f"environment: {reason}; importing torch on the server", force=True)
    answer = session.call("environment_prove", show_event(session), key=key)
    session.display.clear()
    return _record(answer, "proof", ("ok",))


def _record(answer: Mapping[str, Any], name: str, fields: Sequence[str]) -> Mapping[str, Any]:
    found = answer.get(name)
    if not isinstance(found, Mapping) or any(field not in found for field in fields):
        raise ProtocolError(f"the server's answer holds no {name}", step="environment")
    return found


def show_event(session: Session) -> Callable[[dict[str, Any], bytes], None]:
    """On a terminal the last line of a long step is shown, elsewhere each new step."""
    told = ""

    def show_step(event: dict[str, Any], blob: bytes) -> None:
        nonlocal told
        step = one_line(str(event.get("step") or ""), 80)
        line = one_line(str(event.get("line") or ""), 200)
        if step and step != told and not session.display.live:
            session.display.note(f"  {line or step}")
        told = step
        amount = event.get("amount")
        if (
            isinstance(amount, list)
            and len(amount) == 2
            and all(isinstance(part, int) for part in amount)
        ):
            line = f"{size(amount[0])} of {size(amount[1])}  {line}"
        session.display.progress(f"{step} ({duration(event.get('seconds'))})  {line}")

    return show_step


def show_steps(display: Display, deployed: Deployed, only_changes: bool = False) -> None:
    for changed, text in deployed.steps:
        if changed or not only_changes:
            display.line(text)
    shown = deployed.release.left_out[:8]
    for path, reason in shown:
        display.note(f"not sent: {path} ({reason})")
    if len(deployed.release.left_out) > len(shown):
        display.note(f"not sent: {len(deployed.release.left_out) - len(shown)} more")
    if shown:
        display.note("to send such a file all the same, name it in remote.include")


def show_summary(display: Display, session: Session, deployed: Deployed) -> None:
    show_steps(display, deployed)
    system = deployed.facts.get("system") or {}
    root = deployed.facts["root"]
    display.line(
        f"server {show(system.get('host'))}: {deployed.root}, {show(root.get('free_mib'))} MiB"
        f" free, python {show(system.get('python'))},"
        f" {'tmux' if deployed.facts.get('tmux') else 'no tmux (setsid will do)'}"
    )
    show_gpu_table(display, deployed.gpus)
    display.line(f"next: fab -H {session.typed} train")


def show_gpu_table(display: Display, report: GpuReport) -> None:
    if not report.gpus:
        remedy = f" — {report.remedy}" if report.remedy else ""
        display.line(f"GPUs: none ({report.problem or 'nvidia-smi shows none'}){remedy}")
        return
    rows = [
        [
            item.index,
            item.name,
            item.memory_total_mib,
            item.memory_used_mib,
            item.utilization_percent,
            users_of(item),
        ]
        for item in report.gpus
    ]
    display.table(["gpu", "name", "MiB", "used MiB", "use %", "by"], rows)


def users_of(item: Gpu) -> str | None:
    return (
        ", ".join(f"{show(process.user)}: {show(process.name)}" for process in item.processes)
        or None
    )


def gpu_row(item: Gpu) -> dict[str, Any]:
    return {
        "index": item.index,
        "uuid": item.uuid,
        "name": item.name,
        "memory_total_mib": item.memory_total_mib,
        "memory_used_mib": item.memory_used_mib,
        "utilization_percent": item.utilization_percent,
        "compute_capability": item.compute_capability,
        "users": [{"user": p.user, "pid": p.pid, "name": p.name} for p in item.processes],
    }


def gpu_facts(session: Session) -> dict[str, Any]:
    return ask_facts(session, None)


def gpu_json(host: str, answer: Any, error: RemoteError | None) -> dict[str, Any]:
    if error:
        return {"host": host, "error": error.message, "gpus": None}
    report = gpus.parse_gpus(answer.get("gpu") or {})
    return {
        "host": host,
        "driver": report.driver_version,
        "problem": report.problem,
        "gpus": [gpu_row(item) for item in report.gpus],
        "torch": proofs.describe_proofs(answer),
    }


def show_gpus(display: Display, answer: Mapping[str, Any]) -> None:
    report = gpus.parse_gpus(answer.get("gpu") or {})
    show_gpu_table(display, report)
    if report.gpus:
        display.line(f"driver {show(report.driver_version)}")
    for line in proofs.describe_proofs(answer):
        display.line(line)
