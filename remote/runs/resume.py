"""`train --resume`: the next attempt of a run that has ended, on its server, or on another one with
what was fetched of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from remote.agent.shared.trees import tree_hash
from remote.deploy.deploy import deploy, show_steps
from remote.errors import NotFound, UsageError
from remote.link.sending import Sending, known_parts, waiting_note
from remote.link.session import Session, who_am_i
from remote.project.release import entry_of
from remote.project.results import find_run, read_mapping
from remote.records import FileEntry, Run
from remote.runs.launch import launch_on_free_gpus, plan_run, watch
from remote.runs.listing import list_runs
from remote.runs.request import Pending, TrainOptions, parse_request, resumed_argv
from remote.screen.display import size
from remote.transfer.manifest import PARTS

CARRIED = (
    "gpus",
    "gpu_names",
    "queue",
    "wanted_gpus",
    "environment_key",
    "python",
    "prefix",
    "devices",
    "who",
)
"""What may differ between a run's attempts, beside the command's words."""


def resume_one(session: Session, run: str, options: TrainOptions) -> int:
    """Find the run there or here, deploy, and start its next attempt; one that still runs is
    followed."""
    settings = session.project.settings
    if options.recipe or options.name:
        raise UsageError(
            "--recipe and --name belong to a new run; a resumed one keeps its own", step="train"
        )
    given = parse_request(session.project, options)
    kept = find_there(session, run)
    here = None if kept else find_here(session, run)
    identifier = kept.run if kept else here.name if here else run
    asked = kept.asked if kept else read_mapping(here, "run.json")
    arguments = given.arguments or tuple(str(word) for word in asked.get("arguments") or ())
    request = dataclasses.replace(
        given,
        recipe=text_of(asked, "recipe"),
        data=options.data or text_of(asked, "data"),
        arguments=arguments,
    )
    pending = Pending(session.project, session.host, request, identifier)
    following = session.display.live if options.follow is None else options.follow
    if kept and kept.state in ("queued", "running") and not kept.detail.get("elsewhere"):
        session.display.line(
            f"run {identifier}: it is {kept.state} on {session.host}; no second one is started"
        )
        return watch(session, identifier, following, pending)
    if (kept.state if kept else read_mapping(here, "state.json").get("state")) == "finished":
        raise UsageError(
            f"{identifier} has finished", step="train", remedy="train again without --resume"
        )
    deployed = deploy(session, data=request.data)
    show_steps(session.display, deployed, only_changes=True)
    if here:
        plan_run(
            session, request, deployed
        )  # what can't be had there is said before anything is brought
        bring(session, here, asked)

    def start(planned: dict[str, Any]) -> dict[str, Any]:
        run_dir, place, there = (
            f"{deployed.root}/runs/{identifier}",
            planned["trainer_data"],
            planned["trainer_devices"],
        )
        changes: dict[str, Any] = {key: planned[key] for key in CARRIED if key in planned}
        command = text_of(asked, "command") or settings.command
        argv = resumed_argv(
            session.project, command, request, deployed.python, run_dir, place, there
        )
        changes |= {
            "argv": argv,
            "resume_argv": argv,
            "max_restarts": request.max_restarts,
            "arguments": list(arguments),
        }
        return session.call_as_owner(
            "run_resume", run=identifier, asked=changes, notify=request.notify
        )

    answer = launch_on_free_gpus(session, request, deployed, pending, start)
    if answer.get("note"):
        session.display.note(f"note: {answer['note']}")
    if answer.get("again"):
        session.display.line(
            f"run {identifier}: it is running already on {session.host}; no second one is started"
        )
    else:
        session.display.line(
            f"run {identifier}: attempt {answer.get('attempt')} started on {session.host}"
        )
        session.display.note(code_note(str(asked.get("release") or ""), deployed.release.tree))
    return watch(session, identifier, following, pending)


def code_note(its: str, now: str) -> str:
    """Which code an attempt goes on with: the run keeps the copy that it was started with, and what
    it has changed in it."""
    changed = "" if its in ("", now) else f"; what you deployed since ({now[:12]}) is for new runs"
    return f"it goes on with its own copy of the code ({its[:12] or 'as it was'}){changed}"


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
            f"no run {run!r:.80} on the server, and none in {session.project.dest} to bring there",
            host=session.host,
            step="train",
            remedy=f"fab -H {session.typed} status",
        ) from None


def text_of(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return value if isinstance(value, str) and value else None


def bring(session: Session, run: Path, asked: Mapping[str, Any]) -> None:
    """Send a fetched run, its source included; what has arrived already is not sent again."""
    if not any((run / "checkpoints").glob("*.ckpt")) and session.project.has_own_trainer:
        raise NotFound(
            f"{run} holds no checkpoint to go on from",
            step="train",
            remedy="train again without --resume",
        )
    entries = list(entries_of(run))
    rows = [[entry.path, entry.mode, entry.size, entry.sha256] for entry in entries]
    tree = tree_hash((entry.path, entry.mode, entry.size, entry.sha256) for entry in entries)
    answer = session.call("release_missing", tree=tree, manifest=rows)
    sending = Sending(run, entries, frozenset(answer["missing"]), known_parts(answer))
    session.display.note(
        f"{run.name} is not on {session.host}: bringing what was fetched of it,"
        f" {size(sending.total)}"
    )
    state = read_mapping(run, "state.json")
    arguments: dict[str, Any] = {
        "run": run.name,
        "tree": tree,
        "manifest": rows,
        "asked": dict(asked),
        "state": state,
        "who": who_am_i(),
    }
    session.call_as_owner(
        "run_import", waiting_note(session), sending.frames(session.display), **arguments
    )
    session.display.clear()


def entries_of(run: Path) -> Iterator[FileEntry]:
    """Every file and link of a fetched run, in order of path; not what a fetch that was cut has
    left."""
    for place, folders, names in os.walk(run):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in sorted([*names, *links]):
            path = (Path(place) / name).relative_to(run).as_posix()
            if not path.startswith(PARTS + "/"):
                entry, _ = entry_of(run, path, None)
                if entry is not None:
                    yield entry
