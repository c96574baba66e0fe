"""`train --resume`: the next attempt of a run that has ended, on its server, or on another one with
what was fetched of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from remote.agent.shared.reading import differing
from remote.agent.shared.trees import tree_hash
from remote.deploy.deploy import deploy
from remote.deploy.shown import show_steps
from remote.errors import NotFound, UsageError
from remote.link.answers import Imported, Resumed
from remote.link.sending import Sending, waiting_note
from remote.link.session import Session, who_am_i
from remote.project.options import TrainOptions
from remote.project.results import find_run, load, read_mapping, went_on_elsewhere
from remote.records import Asked, FileEntry, Run, RunDetail
from remote.release.release import entry_of, refusing_unreadable, stop_walk
from remote.runs.launch import next_attempt, place_of, started_where, watch, with_code
from remote.runs.placement import Launch, Placement, launch_on_free_gpus, place_run, prepare_launch
from remote.runs.request import GO_ON, TrainRequest, parse_request, plan_argv
from remote.runs.shutdown import tell_plan
from remote.screen.text import show, size
from remote.transfer.manifest import PARTS
from remote.watching.follow import LAST_LINES
from remote.watching.listing import list_runs, way_on


@dataclass(frozen=True)
class Resumption:
    """What to go on with. `kept`: the run as the server has it; else `here`: what was fetched of
    it."""

    run: str
    asked: Asked
    request: TrainRequest
    kept: Run | None
    here: Path | None

    @property
    def lost(self) -> list[str]:
        """Variables whose values only a server that has the run may know."""
        return sorted({*self.asked.env} - {*self.request.env})

    @property
    def give_again(self) -> str:
        return " ".join(["give them again:", *(f"--env {name}" for name in self.lost)])


def resume_one(session: Session, run: str, options: TrainOptions) -> Run:
    """Find the run there or here, deploy, and start its next attempt; one that still runs is
    followed."""
    plan = plan_resumption(session, run, options)
    request, following = plan.request, options.follows(session.display)
    if plan.kept and plan.kept.goes_on:
        return watch(session, plan.run, following, tail=LAST_LINES)
    require_first(session, [plan.kept])
    before = None if options.with_new_code else plan.asked
    deployed = deploy(session, data=request.data, before=before)
    show_steps(session, deployed, only_changes=True)
    launch = prepare_launch(session, request, deployed)
    if plan.here:
        place_run(launch, deployed.facts.held)  # raises before anything is sent
        send_run(session, plan.here)
    if plan.asked.nodes.count > 1 and not request.nodes:
        session.display.note(
            f"it was on {plan.asked.nodes.count} hosts, and goes on on this one alone"
        )

    def start(placement: Placement) -> Resumed:
        return ask_on(session, plan, asked_next(launch, plan, placement, options.with_new_code))

    answer = launch_on_free_gpus(launch, start)
    tell_resumed(launch, plan, answer, options.with_new_code)
    return watch(session, plan.run, following, tail=LAST_LINES)


def plan_resumption(session: Session, run: str, options: TrainOptions) -> Resumption:
    """Raises UsageError or NotFound where there is nothing to go on with; says so where it still
    runs."""
    if options.recipe or options.name:
        raise UsageError(
            "--recipe and --name belong to a new run; a resumed one keeps its own", step="train"
        )
    given = parse_request(session.project, options)
    kept = find_there(session, run)
    here = None if kept else find_here(session, run)
    identifier = kept.run if kept else here.name if here else run
    asked = kept.asked if kept else load(Asked, here)
    if kept and not kept.goes_on:
        refuse_earlier(session, kept)
    by_slurm = session.project.settings.launcher == "slurm"
    several = asked.nodes.count if by_slurm and asked.nodes.count > 1 else None
    request = dataclasses.replace(
        given,
        recipe=asked.recipe,
        data=options.data or asked.data,
        arguments=given.arguments or asked.arguments,
        nodes=given.nodes or several,
    )
    if kept and kept.goes_on:
        session.display.line(
            f"run {identifier}: it is {kept.state} on {session.host}; no second one is started"
        )
    elif (kept.state if kept else load(RunDetail, here).state) == "finished":
        raise UsageError(
            f"{identifier} has finished", step="train", remedy="train again without --resume"
        )
    plan = Resumption(identifier, asked, request, kept, here)
    if here and plan.lost:
        text = f"{identifier} was given {', '.join(plan.lost)} by --env; values are never fetched"
        raise UsageError(text, step="train", remedy=plan.give_again)
    return plan


def tell_resumed(launch: Launch, plan: Resumption, answer: Resumed, with_new_code: bool) -> None:
    session, tree = launch.session, launch.deployed.release.tree
    if answer.note:
        session.display.note(f"note: {answer.note}")
    if answer.again:
        session.display.line(
            f"run {plan.run}: it is running already on {session.host}; no second one is started"
        )
        return
    session.display.line(
        f"run {plan.run}: attempt {show(answer.attempt)} {started_where(answer)} on {session.host}"
    )
    session.display.note(code_note(plan.asked.release, tree, answer.attempt, with_new_code))
    tell_plan(session, launch.request.shutdown)


def asked_next(
    launch: Launch, plan: Resumption, placement: Placement, with_new_code: bool
) -> Asked:
    """run.json for the next attempt: the run's own command, its own code or today's, in the
    environment that was chosen, on today's GPUs."""
    request, project = launch.request, launch.session.project
    command = plan.asked.command or project.settings.command
    argv = plan_argv(project, command, request, place_of(launch, plan.run, placement), GO_ON)
    asked = next_attempt(plan.asked, launch, placement)._replace(argv=argv, resume_argv=argv)
    return with_code(asked, launch.deployed) if with_new_code else asked


def ask_on(session: Session, plan: Resumption, asked: Asked) -> Resumed:
    """What the run's server has of it stays, but for what differs."""
    changes = differing(asked, plan.asked)
    return session.ask(Resumed, run=plan.run, asked=changes, **plan.request.beside)


def code_note(its: str, now: str, attempt: int | None, with_new_code: bool) -> str:
    """Which code an attempt goes on with: the run's own copy, with what it has changed in it, or
    today's."""
    if with_new_code and its not in ("", now):
        kept = f"source-{attempt - 1}/ keeps its own" if attempt else "its own is kept"
        return f"it goes on with today's code ({now[:12]}) in place of {its[:12]}; {kept}"
    changed = f"; --with-new-code would take today's ({now[:12]})"
    return (
        f"it goes on with its own copy of the code ({its[:12] or 'as it was'})"
        f"{'' if its in ('', now) else changed}"
    )


def find_there(session: Session, run: str) -> Run | None:
    try:
        return next(iter(list_runs(session, run)), None)
    except NotFound:
        return None


def find_here(session: Session, run: str) -> Path:
    """What was fetched of it. Raises NotFound where it is neither there nor here."""
    try:
        return find_run(session.project.dest, run, having="checkpoints")
    except UsageError:
        raise NotFound(
            f"no run {run!r:.80} on the server, and none in {session.project.dest} to send there",
            host=session.host,
            step="train",
            remedy=f"fab -H {session.typed} status",
        ) from None


def refuse_earlier(session: Session, kept: Run) -> None:
    """Raises UsageError where it went on on another host, and what came of that is here."""
    directory = session.project.dest / kept.run
    if went_on_elsewhere(directory, kept):
        typed = f"fab -H {session.typed} clean --run {kept.run}"
        raise UsageError(
            f"{kept.run} went on on another host, and {directory} has what came of it;"
            f" {session.host} would go on from before that",
            step="train",
            remedy=f"go on there; or remove it here ({typed}), and what was fetched is sent;"
            " or move that folder away",
        )


def require_first(session: Session, found: Sequence[Run | None]) -> None:
    """Raises UsageError where hosts have the run that only trained along: its checkpoints lie on
    the first one."""
    known = [run for run in found if run]
    if known and all(run.asked.nodes.rank and run.has_ended for run in known):
        run, again = known[0].run, f"fab -H {session.typed} clean --run {known[0].run}"
        raise UsageError(
            f"{run}: its checkpoints lie on the first of its {known[0].asked.nodes.count} hosts",
            step="train",
            remedy=f"{way_on(known[0], session.target)}; where that host is gone for good, {again}:"
            " what was fetched is sent then",
        )


def send_run(session: Session, run: Path) -> None:
    """Send a fetched run, its source included; what has arrived already is not sent again."""
    if not any((run / "checkpoints").glob("*.ckpt")) and session.project.has_own_trainer:
        raise NotFound(
            f"{run} holds no checkpoint to go on from",
            step="train",
            remedy="train again without --resume",
        )
    with refusing_unreadable("train", "mend its rights"):
        entries = list(entries_of(run))
    tree = tree_hash(entries)
    sending = Sending(run, entries)

    def begin() -> None:
        session.display.note(
            f"{run.name} is not on {session.host}: sending what was fetched of it,"
            f" {size(sending.total)}"
        )

    session.ask(
        Imported,
        waiting_note(session),
        sending.upload(session, begin),
        run=run.name,
        tree=tree,
        manifest=entries,
        times={entry.path: os.lstat(run / entry.path).st_mtime for entry in entries},
        asked=read_mapping(run, "run.json"),
        state=read_mapping(run, "state.json"),
        who=who_am_i(),
    )
    session.display.clear()


def entries_of(run: Path) -> Iterator[FileEntry]:
    """Every file and link of a fetched run, a folder's own before what lies below it: of a
    checkpoint and a link to it the checkpoint is the newer one there. Not what a fetch that was cut
    has left."""
    for place, folders, names in os.walk(run, onerror=stop_walk):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in sorted([*names, *links]):
            path = (Path(place) / name).relative_to(run).as_posix()
            if not path.startswith(PARTS + "/"):
                entry, _ = entry_of(run, path, None)
                if entry is not None:
                    yield entry
