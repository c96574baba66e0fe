"""`train`: from what was asked to a run that shows a sign of life, and on to its end where somebody
watches."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from remote.deploy.deploy import Deployed, deploy, show_steps
from remote.deploy.gpus import choose_gpus, gpu_error, held_gpus, unusable_reason
from remote.errors import ConnectionLost, GpuUnfit, NotFound, RemoteError, RunFailed, Unreachable
from remote.link.session import Session, who_am_i
from remote.project.command import label_of
from remote.records import Run
from remote.runs.follow import Follower
from remote.runs.listing import list_runs, only_run, raise_if_failed
from remote.runs.request import (
    Pending,
    TrainOptions,
    TrainRequest,
    describe_request,
    effective_config,
    new_run_id,
    parse_request,
    plan_argv,
    require_gpu,
    resumed_argv,
    start_run,
)
from remote.screen.display import percent, show
from remote.transfer.upload import provide_cifar10

START_WAIT_S = 180.0
"""Importing torch from a cold network disk takes minutes at times."""
STOP_WAIT_S = 90.0
TRIES = 5
SHOWN_LOG_LINES = 25


def train_one(session: Session, options: TrainOptions) -> int:
    request = parse_request(session.project, options)
    deployed = deploy(session, data=options.data)
    show_steps(session.display, deployed, only_changes=True)
    pending = Pending(session.project, session.host, request, deployed.release.tree)
    try:
        return start_and_watch(
            session,
            request,
            deployed,
            pending,
            session.display.live if options.follow is None else options.follow,
        )
    finally:
        pending.release()


def start_and_watch(
    session: Session, request: TrainRequest, deployed: Deployed, pending: Pending, follow: bool
) -> int:
    """Under an id that an earlier call, cut off, may have chosen already."""
    settings = session.project.settings
    label = (
        request.name
        or request.recipe
        or (settings.recipe if session.project.has_own_trainer else label_of(settings.command))
    )
    run = pending.take() or new_run_id(label)
    pending.write(run)
    answer = start_on_free_gpus(session, request, deployed, run, pending)
    if answer.get("note"):
        session.display.note(f"note: {answer['note']}")
    if answer.get("again"):
        session.display.line(
            f"run {run}: a call whose answer was lost has started it on {session.host}; no second"
            " one is started"
        )
    else:
        where = "in tmux" if answer.get("launched") == "tmux" else "without tmux (setsid)"
        session.display.line(f"run {run}: started {where} on {session.host}")
    return watch(session, run, follow, pending)


def plan_run(session: Session, request: TrainRequest, deployed: Deployed) -> dict[str, Any]:
    """What run.json will say, but for the run's own directory. Raises GpuUnfit or NotFound for what
    can't be had there."""
    report, wants_gpu, most, place = deployed.gpus, True, 0, request.data
    if session.project.has_own_trainer:
        config = effective_config(session.project.directory, request, session.project.settings)
        require_gpu(config, bool(report.gpus), session.host)
        wants_gpu, most = config.accelerator != "cpu", config.max_devices
        if request.data is None and not os.path.isabs(config.data) and config.data != "synthetic":
            # Shared by all runs, and not downloaded into each.
            shared = f"{deployed.root}/{config.data}"
            place = deployed.images = deployed.images or (
                provide_cifar10(session, deployed) if config.data == "data" else shared
            )
    if request.data is not None and request.data != "synthetic" and deployed.data_path is None:
        here = os.path.exists(os.path.expanduser(request.data))
        send = f"it is here; send it once: fab -H {session.typed} upload-data {request.data}"
        there = "give its path there (absolute, below your home, or a name in the project's data/)"
        text = f"--data {request.data}: no such file or directory on the server"
        raise NotFound(text, host=session.host, step="train", remedy=send if here else there)
    asked = describe_request(request, session.project) | {
        "release": deployed.release.tree,
        "origin": deployed.release.origin,
        "environment_key": deployed.environment_key,
        "python": deployed.python,
        "prefix": deployed.prefix,
        "local": list(deployed.local),
        "trainer_devices": request.devices,
        "trainer_data": deployed.data_path or place,
    }
    if not report.gpus and wants_gpu and (request.gpus or request.devices != "auto"):
        wanted = f"--gpus {request.gpus}" if request.gpus else f"--devices {request.devices}"
        why = report.problem or "nvidia-smi shows none"
        text, remedy = (
            f"{wanted}: the server has no GPU ({why})",
            "leave it out to train on its processor",
        )
        raise GpuUnfit(text, host=session.host, step="choose GPUs", remedy=remedy)
    if report.gpus and not wants_gpu:
        asked |= {"gpus": []}
    elif report.gpus:
        asked |= plan_gpus(session, request, deployed, most)
    return asked


def plan_gpus(
    session: Session, request: TrainRequest, deployed: Deployed, most: int
) -> dict[str, Any]:
    """GPUs that are free now, or a place in the server's queue. Raises GpuUnfit where that can't
    help, or with --now."""
    gpus, runs = deployed.gpus.gpus, deployed.facts.get("runs") or ()
    if request.gpus and (request.gpus > len(gpus) or 0 < most < request.gpus):
        has = (
            f"this recipe uses {most}" if 0 < most < request.gpus else f"the server has {len(gpus)}"
        )
        raise GpuUnfit(
            f"--gpus {request.gpus}: {has}",
            host=session.host,
            step="choose GPUs",
            remedy="ask for fewer",
        )
    choice = choose_gpus(gpus, request.devices, limit=request.gpus or most, held=held_gpus(runs))
    waiting = [
        run
        for run in runs
        if run.get("state") == "queued" and dict(run.get("asked") or {}).get("queue")
    ]
    enough = len(choice.gpus) >= (request.gpus or 1) and not waiting
    if (
        request.devices != "auto"
        or enough
        or request.now
        or all(unusable_reason(gpu) for gpu in gpus)
    ):
        if choice.problem is not None:
            raise gpu_error(choice, session.host)
        if request.now and not enough:
            why = (
                f"{len(waiting)} runs wait already"
                if waiting
                else f"{len(choice.gpus)} of {request.gpus} GPUs are free"
            )
            raise GpuUnfit(
                "; ".join([why, *choice.notes]),
                host=session.host,
                step="choose GPUs",
                remedy="leave out --now to wait for them",
            )
        for note in choice.notes:
            session.display.note(f"note: {note}")
        uuids, names = [gpu.uuid for gpu in choice.gpus], [f"{gpu.index}" for gpu in choice.gpus]
        return {"gpus": uuids, "gpu_names": names, "trainer_devices": "auto", "queue": False}
    return {
        "gpus": [],
        "gpu_names": [],
        "trainer_devices": "auto",
        "queue": True,
        "wanted_gpus": request.gpus or 1,
    }


def start_on_free_gpus(
    session: Session, request: TrainRequest, deployed: Deployed, run: str, pending: Pending
) -> dict[str, Any]:
    """Plan and start a new run."""
    if any(known.get("run") == run for known in deployed.facts.get("runs") or ()):
        # An earlier call has made it, with GPUs of its own choice, which it may be using by now.
        return start_patiently(session, lambda: start_run(session, run, {}))

    def start(asked: dict[str, Any]) -> dict[str, Any]:
        data, devices = asked.pop("trainer_data"), asked.pop("trainer_devices")
        project, run_dir = session.project, f"{deployed.root}/runs/{run}"
        argv = plan_argv(project, request, deployed.python, run_dir, data, devices)
        plain = dataclasses.replace(request, fields=())
        again = resumed_argv(
            project, project.settings.command, plain, deployed.python, run_dir, data, devices
        )
        return start_run(session, run, asked | {"argv": argv, "resume_argv": again}, request.notify)

    return launch_on_free_gpus(session, request, deployed, pending, start)


def launch_on_free_gpus(
    session: Session,
    request: TrainRequest,
    deployed: Deployed,
    pending: Pending,
    start: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """Plan, and `start` with the plan. Where another launch was quicker to take a GPU, the rest are
    looked at again."""
    while True:
        try:
            asked = plan_run(session, request, deployed)
            return start_patiently(session, lambda asked=asked: start(dict(asked)))  # type: ignore[misc]
        except (ConnectionLost, Unreachable):
            raise  # the launch may well have happened: it stays remembered
        except RemoteError as error:
            taken = error.details.get("taken")
            if not isinstance(taken, dict) or not taken.keys() & {
                gpu.uuid for gpu in deployed.gpus.gpus
            }:
                pending.clear()
                raise
            holders = [
                {"run": holder, "state": "running", "gpus": [uuid]}
                for uuid, holder in taken.items()
            ]
            known = [*(deployed.facts.get("runs") or ()), *holders]
            if held_gpus(known) == held_gpus(deployed.facts.get("runs") or ()):
                pending.clear()
                raise
            deployed.facts = {**deployed.facts, "runs": known}


def start_patiently(session: Session, start: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A launch whose answer is lost is asked for again: its id makes it the same launch."""
    return session.patiently(start, "its start is asked for again, and is the same start", TRIES)


def watch(session: Session, run: str, follow: bool, pending: Pending) -> int:
    """Wait for the first sign of life, then show the training or leave it alone. Ctrl-C never harms
    it.

    Only then is the launch forgotten: until the user was told of the run, the same command means
    the same run.
    """
    follower = Follower(session, run, show_log=follow)
    if follow:
        session.display.note("following; Ctrl-C leaves the training alone")
    try:
        described = wait_for_start(session, run, follower, pending)
        if described.state == "queued":
            session.display.line(
                f"it {described.detail.get('waiting')}. It starts by itself: fab -H {session.typed}"
                " status tells when"
            )
            if not follow:
                return 0
        if follow:
            return show_end(session, follower.until_end())
    except KeyboardInterrupt:
        pending.clear()
        session.display.note(
            f"\nthe training goes on. Come back with: fab -H {session.typed} logs --run {run}"
            f" --follow; results with: fab -H {session.typed} fetch-results"
        )
        return 0
    session.display.line(
        f"it trains. Come back with: fab -H {session.typed} logs --follow | status | fetch-results"
    )
    return 0


def wait_for_start(session: Session, run: str, follower: Follower, pending: Pending) -> Run:
    """Raises RunFailed, with the log's end shown, for what ended at once or shows nothing."""
    started, described = follower.until_started(START_WAIT_S)
    pending.clear()
    if described.state == "failed":
        show_log_end(session, run, follower)
        raise_if_failed(described, session.host)
    if not started:
        raise RunFailed(
            f"{run} has shown no sign of life for {START_WAIT_S:.0f} s (it goes on)",
            host=session.host,
            remedy=f"fab -H {session.typed} logs --run {run} --follow",
        )
    return described


def show_log_end(session: Session, run: str, follower: Follower) -> None:
    if follower.show_log and follower.offset:
        return
    session.display.line(f"the last lines of {run}'s log:")
    last = Follower(session, run)
    last.tail = SHOWN_LOG_LINES * 120
    last.now()


def show_end(session: Session, run: Run) -> int:
    """The result in one line; raises RunFailed for a failure."""
    raise_if_failed(run, session.host)
    if run.state == "stopped":
        session.display.line(
            f"{run.run} was stopped: {run.reason or ''}; to go on: fab -H {session.typed} train"
            f" --resume {run.run}"
        )
        return 0
    accuracy = run.summary.get("test_accuracy")
    result = f", test accuracy {percent(accuracy)}" if accuracy is not None else ""
    epochs = run.summary.get("epochs")
    after = f" after {show(epochs)} epochs" if epochs is not None else ""
    session.display.line(f"{run.run} finished{after}{result}")
    session.display.line(f"bring everything here: fab -H {session.typed} fetch-results")
    return 0


def stop_one(session: Session, run: str) -> int:
    """Ask for its end, and wait for it."""
    answer = session.call("run_stop", run=run, who=who_am_i())
    if not answer.get("asked"):
        session.display.line(f"{answer.get('run')} has ended already: {answer.get('state')}")
        return 0
    return wait_until_stopped(session, str(answer["run"]))


def wait_until_stopped(session: Session, run: str) -> int:
    """Show that it is being stopped, and how it ended."""
    session.display.note(f"stopping {run}: it has 60 s to save its state")
    answer = session.call("follow", None, run=run, until="end", wait_s=STOP_WAIT_S, tail=0)
    described = only_run(list_runs(session, run))
    if answer.get("late"):
        raise RunFailed(
            f"{run} is still {described.state} after {STOP_WAIT_S:.0f} s",
            host=session.host,
            remedy="look at its log",
        )
    session.display.line(
        f"{described.run}: {described.state}{': ' + described.reason if described.reason else ''}"
    )
    if described.state == "stopped":
        session.display.line(f"to go on: fab -H {session.typed} train --resume {described.run}")
    return 0
