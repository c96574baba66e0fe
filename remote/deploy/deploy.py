"""`deploy`: facts → release → environment → proof → summary. Each step says what it did, or why it
did nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from remote.deploy import environment, proofs
from remote.deploy.code import put_release
from remote.deploy.needs import Known
from remote.deploy.proofs import Ready
from remote.errors import RemoteError, ServerUnfit
from remote.link.answers import (
    Environment,
    EnvironmentPrepare,
    EnvironmentProve,
    Facts,
    Inspection,
    Nodes,
    Proof,
    Resolution,
)
from remote.link.session import Session
from remote.project.command import describe_command
from remote.project.release import SMALL_MANIFEST, build_release, manifest_rows
from remote.project.slurm import node_options
from remote.records import EnvironmentPlan, Gpu, GpuReport, Release, Step
from remote.requirements import reading
from remote.screen.display import Display, duration, show, size
from remote.screen.text import one_line


@dataclass(frozen=True)
class Deployed:
    """What stands on the server after a deploy, and what was done for it."""

    release: Release
    facts: Facts
    environment: Environment
    steps: tuple[Step, ...] = ()
    # Folders of the project's own packages, which each run imports from its own copy.
    local: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        return self.facts.root.path

    @property
    def changed(self) -> bool:
        return any(step.changed for step in self.steps)

    def as_json(self, session: Session) -> dict[str, Any]:
        return {
            "host": session.host,
            "root": self.root,
            "release": self.release.tree,
            "environment": self.environment.key,
            "python": self.environment.python,
            "changed": self.changed,
            "steps": [step.text for step in self.steps],
            "left_out": [
                {"path": path, "reason": reason} for path, reason in self.release.left_out
            ],
            "gpus": [gpu_row(item) for item in self.facts.gpus.gpus],
            "requests": session.link.requests if session.link else None,
        }


def deploy(session: Session, data: str | None = None, refresh: bool = False) -> Deployed:
    """Bring the server to the state of this project. `data`: also look for this path there.
    `refresh`: the environment is made anew, with what branches and ranges stand for today."""
    requirements = read_requirements(session)
    release = build_release_while_opening(session)
    facts = ask_facts(session, release, data)
    command = describe_command(session.project.settings.command)
    steps = [Step(False, command)] if command else []
    steps.append(put_release(session, facts, release))
    made, step = prepare_environment(session, facts, requirements, refresh)
    session.remember_agent()
    local = tuple(reading.local_packages(requirements))
    return Deployed(release, facts, made, (*steps, step), local)


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
        "" if name in ("", "none") else reading.read_requirements(session.project.directory, name)
    )


def ask_facts(session: Session, release: Release | None, data: str | None = None) -> Facts:
    """Everything about the server in one call; with a small release, also what of it is missing
    there."""
    arguments: dict[str, Any] = {"python": session.project.settings.python}
    if release is not None:
        arguments["tree"] = release.tree
        if len(release.entries) <= SMALL_MANIFEST:
            arguments["manifest"] = manifest_rows(release)
    if data is not None and data != "synthetic":
        arguments["data"] = data
    arguments |= on_a_node(session)
    facts = session.ask_as_owner(Facts, **arguments)
    problem = facts.root.problem
    if problem is not None and release is not None:
        raise ServerUnfit(problem.message, host=session.host, step="root", remedy=problem.remedy)
    return facts


def on_a_node(session: Session) -> dict[str, Any]:
    """For questions about GPUs: a login node has none, and is no measure for those that train."""
    settings = session.project.settings
    return {"slurm": node_options(settings.slurm)} if settings.launcher == "slurm" else {}


def prepare_environment(
    session: Session, facts: Facts, requirements: str, refresh: bool = False
) -> tuple[Environment, Step]:
    """Keep, reuse or build the environment, and prove it on the GPU unless the proof still
    holds."""
    plan = choose_environment(session, facts, requirements, refresh)
    if plan.kind == "keep":
        found = next(known for known in facts.environments if known.key == plan.key)
        made = False
    else:
        session.display.note(f"environment: {plan.why}")
        answer = session.ask_as_owner(EnvironmentPrepare, show_event(session), plan=dict(plan.args))
        session.display.clear()
        found, made = answer.environment, answer.built
    for note in plan.notes:
        session.display.note(f"note: {note}")
    reason = proofs.proof_needed(found, facts)
    proof = proofs.proof_of(found, facts) if reason is None else prove(session, found.key, reason)
    ready = Ready(found, proof, made=made, proved=reason is not None)
    return found, Step(made or ready.proved, proofs.describe_environment(plan, ready))


def choose_environment(
    session: Session, facts: Facts, requirements: str, refresh: bool = False
) -> EnvironmentPlan:
    """The plan; the server's interpreters are looked into, and pip is asked what the requirements
    bring along, only where nothing can be kept."""
    settings = session.project.settings
    known = Known(facts)
    try:
        plan = environment.plan_environment(known, settings, requirements, refresh)
        if plan.kind == "inspect-first":
            inspection = session.ask(
                Inspection,
                show_event(session),
                configured=settings.python,
                detail=environment.inspection_detail(requirements),
            )
            known = dataclasses.replace(known, inspection=inspection)
            plan = environment.plan_environment(known, settings, requirements, refresh)
        if plan.kind == "resolve-first":
            resolution = session.ask(Resolution, show_event(session), plan=dict(plan.args))
            known = dataclasses.replace(known, resolution=resolution)
            plan = environment.plan_environment(known, settings, requirements, refresh)
        session.display.clear()
        return plan
    except RemoteError as error:
        error.host = error.host or session.host
        raise


def prove(session: Session, key: str, reason: str) -> Proof:
    """Have the environment's torch tried on every GPU."""
    session.display.progress(f"environment: {reason}; importing torch on the server", force=True)
    proof = session.ask(EnvironmentProve, show_event(session), key=key, **on_a_node(session)).proof
    session.display.clear()
    return proof


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
    for step in deployed.steps:
        if step.changed or not only_changes:
            display.line(step.text)
    shown = deployed.release.left_out[:8]
    for path, reason in shown:
        display.note(f"not sent: {path} ({reason})")
    if len(deployed.release.left_out) > len(shown):
        display.note(f"not sent: {len(deployed.release.left_out) - len(shown)} more")
    if shown:
        display.note("to send such a file all the same, name it in remote.include")


def show_summary(display: Display, session: Session, deployed: Deployed) -> None:
    show_steps(display, deployed)
    system, root = deployed.facts.system, deployed.facts.root
    launcher = "tmux" if deployed.facts.tmux else "no tmux (setsid will do)"
    if session.project.settings.launcher == "slurm":
        launcher = "Slurm"
    display.line(
        f"server {show(system.host)}: {show(root.path)}, {show(root.free_mib)} MiB free, python"
        f" {show(system.python)}, {launcher}"
    )
    show_gpu_table(display, deployed.facts.gpus)
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


def gpu_facts(session: Session) -> Facts:
    return ask_facts(session, None)


@dataclass(frozen=True)
class GpuLook:
    """`nodes`: of the partition, where Slurm is the launcher."""

    facts: Facts
    nodes: Nodes | None


def look_at_gpus(session: Session) -> GpuLook:
    settings, facts = session.project.settings, gpu_facts(session)
    if settings.launcher != "slurm":
        return GpuLook(facts, None)
    return GpuLook(facts, session.ask(Nodes, partition=settings.slurm.partition))


def gpu_json(host: str, look: GpuLook | None, error: RemoteError | None) -> dict[str, Any]:
    if look is None:
        return {"host": host, "error": error.message if error else None, "gpus": None}
    facts, nodes = look.facts, look.nodes
    told = {} if nodes is None else {"cluster": dataclasses.asdict(nodes)}
    return told | {
        "host": host,
        "driver": facts.gpus.driver_version,
        "problem": facts.gpus.problem,
        "gpus": [gpu_row(item) for item in facts.gpus.gpus],
        "torch": proofs.describe_proofs(facts),
    }


def show_gpus(display: Display, look: GpuLook) -> None:
    facts = look.facts
    if look.nodes is not None:
        show_nodes(display, look.nodes)
    show_gpu_table(display, facts.gpus)
    if facts.gpus.gpus:
        display.line(f"driver {show(facts.gpus.driver_version)}")
    for line in proofs.describe_proofs(facts):
        display.line(line)


def show_nodes(display: Display, nodes: Nodes) -> None:
    """The partition's nodes with their GPUs, and who waits for them."""
    rows = [
        [row.node, row.partition, row.state, row.gpus, row.used.partition("(")[0]]
        for row in nodes.nodes
    ]
    display.table(["node", "partition", "state", "gpus", "in use"], rows)
    waiting = ", ".join(f"{user} {number}" for user, number in nodes.waiting.items())
    display.line(f"jobs that wait: {waiting or 'none'}")
