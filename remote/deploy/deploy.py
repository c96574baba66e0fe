"""`deploy`: facts → release → environment → proof → summary. Each step says what it did, or why it
did nothing."""

from __future__ import annotations

import dataclasses
import posixpath
import re
from dataclasses import dataclass
from typing import Any

from remote.agent.shared.environment import Environment, Proof
from remote.agent.shared.local_package import INSTALLABLE, LocalPackage
from remote.agent.shared.reading import tell
from remote.deploy import environment, proofs
from remote.deploy.code import put_release
from remote.deploy.needs import Known
from remote.deploy.proofs import Ready
from remote.errors import RemoteError, ServerUnfit, UsageError
from remote.link.answers import EnvironmentPrepare, EnvironmentProve, Inspection, Resolution
from remote.link.events import StepEvent, heard
from remote.link.facts import Facts
from remote.link.link import OnEvent
from remote.link.session import Project, Session
from remote.project.command import describe_command, missing_script
from remote.project.own_trainer import no_trainer, require_whole_trainer
from remote.project.slurm import build_options, node_options
from remote.records import Asked, EnvironmentPlan, Release, Settings, Step
from remote.release.release import SMALL_MANIFEST
from remote.requirements.lines import local_packages, named_archives
from remote.screen.text import duration, one_line, size


@dataclass(frozen=True)
class Deployed:
    """What stands on the server after a deploy, and what was done for it."""

    release: Release
    facts: Facts
    environment: Environment
    steps: tuple[Step, ...] = ()
    # The project's own packages, which each run imports from its own copy.
    local: tuple[LocalPackage, ...] = ()

    @property
    def root(self) -> str:
        return self.facts.root.path

    @property
    def changed(self) -> bool:
        return any(step.changed for step in self.steps)


def deploy(
    session: Session, data: str | None = None, refresh: bool = False, before: Asked | None = None
) -> Deployed:
    """Update the server to this project's state. `data`: also look for this path there.
    `refresh`: the environment is made anew, with what branches and ranges stand for today.
    `before`: of a run that goes on in the environment that it has had, where that still holds."""
    requirements = read_requirements(session.project)
    session.open()  # the login waits for the network, while files are listed and hashed
    release = session.project.build_release()
    sent = {entry.path for entry in release.entries}
    if session.project.has_own_trainer:
        require_whole_trainer(session.project.directory, sent)
    local = own_packages(session, requirements, release)
    facts = ask_facts(session, release, data)
    line = session.project.settings.command
    if missing := missing_script(line, session.project.directory, sent):
        session.display.note(f"warning: {missing[0]}; {missing[1]}")
    unread = session.project.directory / "requirements.txt"
    if session.project.settings.requirements == "none" and unread.is_file():
        session.display.note(
            "note: remote.requirements is none: nothing of requirements.txt is installed there"
        )
    command = describe_command(line)
    steps = [Step(False, command)] if command else []
    steps.append(put_release(session, facts, release))
    for known in steps:
        session.display.step(known)
    plan = choose_as_before(session, facts, requirements, before) if before else None
    plan = plan or choose_environment(session, facts, requirements, refresh)
    made, step = prepare_environment(session, facts, plan)
    session.display.step(step)
    session.remember_agent()
    return Deployed(release, facts, made, (*steps, step), local)


def read_requirements(project: Project) -> str:
    """The text of remote.requirements with what it includes; empty for `none`. Raises UsageError
    for what is wrong in it."""
    directory, settings = project.directory, project.settings
    if settings.requirements in ("", "none"):
        return ""
    missing = no_trainer(settings.command, directory)
    if missing and settings.requirements == Settings.requirements:
        raise UsageError(missing)
    from remote.requirements.reading import read_requirements as read

    return read(directory, settings.requirements)


def own_packages(session: Session, requirements: str, release: Release) -> tuple[LocalPackage, ...]:
    """The project's own packages, with what should be known of them said. Raises UsageError for one
    that can't be imported there."""
    directory, note = session.project.directory, session.display.note
    folders, archives = local_packages(requirements), named_archives(requirements)
    if not (folders or archives or any((directory / name).is_file() for name in INSTALLABLE)):
        return ()
    from remote.requirements import layout

    found = layout.find_packages(directory, folders)
    for one in found:
        if one.built:
            note(
                f"note: {one.shown}: its compiled part ({one.built}) is not built there: runs"
                " import its Python code alone; remote.command can build it first"
            )
    path = re.search(r"\bPYTHONPATH=([^\s$]*)(?!\S)", session.project.settings.command)
    seen = [".", *map(posixpath.normpath, path[1].strip("'\"").split(":"))] if path else []
    hidden = [place for one in found for place in one.package.places if place not in seen]
    if path and hidden:
        note(
            f"warning: remote.command sets PYTHONPATH, which hides {', '.join(hidden)}; write"
            f" {path[0]}:$PYTHONPATH"
        )
    sent = {entry.path for entry in release.entries}
    for place in archives:
        layout.require_sent(place, sent)
    lost = layout.unsent(directory, found, sent)
    if lost:
        more = f" and {len(lost) - 3} more" if lost[3:] else ""
        note(
            f"warning: not sent, so that runs can't import it: {', '.join(lost[:3])}{more}; take it"
            " out of .gitignore, or name it in remote.include"
        )
    return tuple(one.package for one in found)


def ask_facts(session: Session, release: Release | None = None, data: str | None = None) -> Facts:
    """Everything about the server in one call; with a small release, also what of it is missing
    there."""
    arguments: dict[str, Any] = {}
    if release is not None:
        arguments["tree"] = release.tree
        if len(release.entries) <= SMALL_MANIFEST:
            arguments["manifest"] = release.entries
    if data is not None and data != "synthetic":
        arguments["data"] = data
    arguments |= on_a_node(session)
    facts = session.ask(Facts, **arguments)
    problem = facts.root.problem
    if problem is not None and release is not None:
        raise ServerUnfit(problem.message, host=session.host, step="root", remedy=problem.remedy)
    return facts


def on_a_node(session: Session) -> dict[str, Any]:
    """For questions about GPUs: a login node has none, and is no measure for those that train."""
    settings = session.project.settings
    return {"slurm": node_options(settings.slurm)} if settings.launcher == "slurm" else {}


def prepare_environment(
    session: Session, facts: Facts, plan: EnvironmentPlan
) -> tuple[Environment, Step]:
    """Keep, reuse or build the environment, and prove it on the GPU unless the proof still
    holds."""
    for note in plan.notes:
        session.display.note(f"note: {note}")
    if plan.kind == "keep":
        found = next(known for known in facts.environments if known.key == plan.key)
        made = False
    else:
        if plan.kind != "as-is":  # whose summary says the same
            session.display.note(f"environment: {plan.why}")
        settings = session.project.settings
        in_job = settings.launcher == "slurm" and settings.slurm.build == "job"
        build = plan.build._replace(job=build_options(settings.slurm) if in_job else None)
        args = tell(build)
        answer = session.ask(EnvironmentPrepare, show_steps(session), plan=args)
        session.display.clear()
        found, made = answer.environment, answer.built
    reason = proofs.proof_needed(found, facts)
    proof = proofs.proof_of(found, facts) if reason is None else prove(session, found.key, reason)
    ready = Ready(found, proof, made=made, proved=reason is not None)
    return found, Step(made or ready.proved, proofs.describe_environment(plan, ready))


def choose_as_before(
    session: Session, facts: Facts, requirements: str, before: Asked
) -> EnvironmentPlan | None:
    settings = session.project.settings
    plan, note = environment.plan_before(facts, settings, requirements, before)
    if note:
        session.display.note(f"note: {note}")
    return plan


def choose_environment(
    session: Session, facts: Facts, requirements: str, refresh: bool = False
) -> EnvironmentPlan:
    """The plan; the server's interpreters are looked into, and pip resolves the requirements,
    only where nothing can be kept."""
    settings = session.project.settings
    known = Known(facts)
    try:
        while True:
            plan = environment.plan_environment(known, settings, requirements, refresh)
            if plan.kind == "inspect-first":
                inspection = session.ask(
                    Inspection, show_steps(session), configured=settings.python, detail=plan.detail
                )
                known = dataclasses.replace(known, inspection=inspection)
            elif plan.kind == "resolve-first":
                told = session.ask(Resolution, show_steps(session), plan=tell(plan.build))
                if plan.build.kind == "overlay":
                    known = dataclasses.replace(known, on_top=told)
                else:
                    known = dataclasses.replace(known, resolution=told)
            else:
                session.display.clear()
                return plan
    except RemoteError as error:
        error.host = error.host or session.host
        raise


def prove(session: Session, key: str, reason: str) -> Proof:
    """Have the environment's torch tried on every GPU."""
    session.display.doing(f"environment: {reason}; importing torch on the server")
    proof = session.ask(EnvironmentProve, show_steps(session), key=key, **on_a_node(session)).proof
    session.display.clear()
    return proof


def show_steps(session: Session) -> OnEvent:
    """The step of a long operation, how long it takes, and what it says."""

    def show(event: StepEvent, blob: bytes) -> None:
        step = one_line(event.step, 80)
        parts = [f"{step} ({duration(event.seconds)})"]
        if len(event.amount) == 2:
            parts.append(f"{size(event.amount[0])} of {size(event.amount[1])}")
        parts.append(one_line(event.line, 200))
        session.display.doing("  ".join(filter(None, parts)), step)

    return heard(StepEvent, show)
