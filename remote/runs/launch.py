"""`train`: from what was asked to a run that shows a sign of life, and on to its end where somebody
watches."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from remote.deploy.deploy import Deployed, deploy
from remote.deploy.gpus import choose_gpus, gpu_error, unusable_reason
from remote.deploy.shown import show_steps
from remote.errors import ConnectionLost, GpuUnfit, NotFound, RemoteError, RunFailed, Unreachable
from remote.link.answers import Followed, Resumed, Started, Stopping
from remote.link.session import Session, who_am_i
from remote.project.command import label_of
from remote.project.settings import listed
from remote.project.slurm import job_request
from remote.records import Gpu, Run
from remote.runs.follow import Follower, LeaveWanted, StopWanted
from remote.runs.listing import list_runs, only_run, raise_if_failed
from remote.runs.request import (
    Pending,
    Place,
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
from remote.screen.text import percent, show
from remote.transfer.upload import provide_cifar10

START_WAIT_S = 180.0
"""Importing torch from a cold network disk takes minutes at times."""
STOP_WAIT_S = 90.0
NEVER = "can never start"
"""In Slurm's reasons, as the agent words them."""
TRIES = 5
SHOWN_LOG_LINES = 25
S = TypeVar("S")


@dataclass(frozen=True)
class Launch:
    """All that a launch needs, settled before GPUs are chosen. `images`: where the trainer finds
    them there."""

    session: Session
    request: TrainRequest
    deployed: Deployed
    pending: Pending
    images: str | None = None
    # A training on the processor alone takes no GPU; 0 means any number of them.
    wants_gpu: bool = True
    most_gpus: int = 0

    @property
    def root(self) -> str:
        return self.deployed.root

    @property
    def by_slurm(self) -> bool:
        return self.session.project.settings.launcher == "slurm"


@dataclass(frozen=True)
class Placement:
    """The GPUs of a run: taken now, or a place in the server's queue. `devices`: for the trainer's
    own option."""

    gpus: tuple[Gpu, ...] | None = None
    queue: bool = False
    wanted: int = 1
    devices: str = "auto"
    # What is asked of Slurm, which places the run then.
    slurm: Mapping[str, Any] | None = None
    # Where the site takes no more jobs at once it is submitted later, and not refused.
    later: bool = False

    def as_asked(self) -> dict[str, Any]:
        """For run.json."""
        asked: dict[str, Any]
        if self.slurm is not None:
            asked = {"gpus": None, "gpu_names": [], "queue": False, "later": self.later}
            return asked | {"slurm": dict(self.slurm)}
        if self.gpus is None:
            return {}
        asked = {
            "gpus": [gpu.uuid for gpu in self.gpus],
            "gpu_names": [str(gpu.index) for gpu in self.gpus],
            "queue": self.queue,
        }
        return asked | {"wanted_gpus": self.wanted} if self.queue else asked


def train_one(session: Session, options: TrainOptions) -> Run:
    request = parse_request(session.project, options)
    deployed = deploy(session, data=options.data)
    show_steps(session, deployed, only_changes=True)
    pending = Pending(session.project, session.host, request, deployed.release.tree)
    try:
        run = start_once(session, request, deployed, pending)
        return watch(session, run, options.follows(session.display), pending)
    finally:
        pending.release()


def start_once(
    session: Session, request: TrainRequest, deployed: Deployed, pending: Pending
) -> str:
    """Under an id that an earlier call, cut off, may have chosen already."""
    settings = session.project.settings
    own = settings.recipe if session.project.has_own_trainer else label_of(settings.command)
    run = pending.take() or new_run_id(request.name or request.recipe or own)
    pending.write(run)
    if any(known.run == run for known in deployed.facts.runs):
        # An earlier call has made it, with GPUs of its own choice, which it may be using by now.
        answer = start_patiently(session, lambda: start_run(session, run, {}, {}))
    else:
        answer = start_new(prepare_launch(session, request, deployed, pending), run)
    if answer.note:
        session.display.note(f"note: {answer.note}")
    if answer.again:
        session.display.line(
            f"run {run}: a call whose answer was lost has started it on {session.host}; no second"
            " one is started"
        )
    else:
        session.display.line(f"run {run}: {started_where(answer)} on {session.host}")
    return run


def started_where(answer: Started | Resumed) -> str:
    if answer.launched == "slurm":
        return f"submitted to Slurm{f' as job {answer.job}' if answer.job else ''}"
    return f"started {'in tmux' if answer.launched == 'tmux' else 'without tmux (setsid)'}"


def prepare_launch(
    session: Session, request: TrainRequest, deployed: Deployed, pending: Pending
) -> Launch:
    """Raises GpuUnfit or NotFound for what can't be had there."""
    facts = deployed.facts
    launch = Launch(session, request, deployed, pending, facts.data_path or request.data)
    if session.project.has_own_trainer:
        config = effective_config(session.project.directory, request, session.project.settings)
        require_gpu(config, launch.by_slurm or bool(facts.gpus.gpus), session.host)
        launch = dataclasses.replace(
            launch, wants_gpu=config.accelerator != "cpu", most_gpus=config.max_devices
        )
        if request.data is None and not os.path.isabs(config.data) and config.data != "synthetic":
            # Shared by all runs, and not downloaded into each.
            shared = f"{deployed.root}/{config.data}"
            images = provide_cifar10(session, facts) if config.data == "data" else shared
            launch = dataclasses.replace(launch, images=images)
    needed = listed(session.project.settings.data)
    for name in needed:
        if name.partition("/")[0] not in facts.datasets.names:
            text = f"remote.data names {name}, which is not in {deployed.root}/data there"
            remedy = f"send it once: fab -H {session.typed} upload-data PATH --name {name}"
            raise NotFound(text, host=session.host, step="train", remedy=remedy)
    if request.data not in (None, "synthetic") and facts.data_path is None:
        here = os.path.exists(os.path.expanduser(str(request.data)))
        send = f"it is here; send it once: fab -H {session.typed} upload-data {request.data}"
        there = "give its path there (absolute, below your home, or a name in the project's data/)"
        text = f"--data {request.data}: no such file or directory on the server"
        raise NotFound(text, host=session.host, step="train", remedy=send if here else there)
    here_only = not launch.by_slurm and (request.gpus or request.devices != "auto")
    if not facts.gpus.gpus and launch.wants_gpu and here_only:
        wanted = f"--gpus {request.gpus}" if request.gpus else f"--devices {request.devices}"
        raise GpuUnfit(
            f"{wanted}: the server has no GPU ({facts.gpus.problem or 'nvidia-smi shows none'})",
            host=session.host,
            step="choose GPUs",
            remedy="leave it out to train on its processor",
        )
    return launch


def require_so_many(launch: Launch, there: int | None) -> None:
    """`there`: GPUs of the server; None: Slurm knows."""
    wanted, most = launch.request.gpus or 0, launch.most_gpus
    for limit, has in ((most, f"this recipe uses {most}"), (there, f"the server has {there}")):
        if limit and wanted > limit:
            raise GpuUnfit(
                f"--gpus {wanted}: {has}",
                host=launch.session.host,
                step="choose GPUs",
                remedy="ask for fewer",
            )


def place_run(launch: Launch, held: Mapping[str, str]) -> Placement:
    """GPUs that are free now, or a place in the server's queue. Raises GpuUnfit where that can't
    help, or with --now."""
    request, gpus = launch.request, launch.deployed.facts.gpus.gpus
    most, host = launch.most_gpus, launch.session.host
    if launch.by_slurm:
        require_so_many(launch, None)
        slurm = launch.session.project.settings.slurm
        asked = job_request(slurm, request.time, request.gpus, launch.wants_gpu)
        return Placement(slurm=asked)
    if not gpus:
        return Placement(devices=request.devices)
    if not launch.wants_gpu:
        return Placement((), devices=request.devices)
    require_so_many(launch, len(gpus))
    choice = choose_gpus(gpus, request.devices, limit=request.gpus or most, held=held)
    runs = launch.deployed.facts.runs
    waiting = sum(run.state == "queued" and run.queue for run in runs)
    enough = len(choice.gpus) >= (request.gpus or 1) and not waiting
    hopeless = all(unusable_reason(gpu) for gpu in gpus)
    if request.devices == "auto" and not enough and not request.now and not hopeless:
        return Placement((), queue=True, wanted=request.gpus or 1)
    if choice.problem is not None:
        raise gpu_error(choice, host)
    if request.now and not enough:
        free = f"{len(choice.gpus)} of {request.gpus} GPUs are free"
        raise GpuUnfit(
            "; ".join([f"{waiting} runs wait already" if waiting else free, *choice.notes]),
            host=host,
            step="choose GPUs",
            remedy="leave out --now to wait for them",
        )
    for note in choice.notes:
        launch.session.display.note(f"note: {note}")
    return Placement(choice.gpus)


def start_new(launch: Launch, run: str) -> Started:
    def start(placement: Placement) -> Started:
        asked = asked_for(launch, run, placement)
        return start_run(launch.session, run, asked, launch.request.private)

    return launch_on_free_gpus(launch, start)


def asked_for(launch: Launch, run: str, placement: Placement) -> dict[str, Any]:
    """run.json of a new run."""
    project, request, deployed = launch.session.project, launch.request, launch.deployed
    made = deployed.environment
    there = Place(made.python, f"{launch.root}/runs/{run}", launch.images, placement.devices)
    plain = dataclasses.replace(request, fields=())
    return {
        **describe_request(request, project),
        "release": deployed.release.tree,
        "origin": deployed.release.origin,
        "environment_key": made.key,
        "python": made.python,
        "prefix": made.prefix,
        "local": list(deployed.local),
        "data_path": launch.images,
        "argv": plan_argv(project, request, there),
        "resume_argv": resumed_argv(project, project.settings.command, plain, there),
        **placement.as_asked(),
    }


def launch_on_free_gpus(launch: Launch, start: Callable[[Placement], S]) -> S:
    """`start` on GPUs that are free. Where another launch was quicker to take one, the rest are
    looked at again."""
    held = launch.deployed.facts.held
    while True:
        try:
            placement = place_run(launch, held)
            return start_patiently(launch.session, partial(start, placement))
        except (ConnectionLost, Unreachable):
            raise  # the launch may well have happened: it stays remembered
        except RemoteError as error:
            taken = error.details.get("taken")
            known = {gpu.uuid for gpu in launch.deployed.facts.gpus.gpus}
            more = {u: str(run) for u, run in taken.items()} if isinstance(taken, dict) else {}
            if not known & more.keys() - held.keys():
                launch.pending.clear()
                raise
            held = held | more


def start_patiently(session: Session, start: Callable[[], S]) -> S:
    """A launch whose answer is lost is asked for again: its id makes it the same launch."""
    return session.patiently(start, "its start is asked for again, and is the same start", TRIES)


def watch(session: Session, run: str, follow: bool, pending: Pending) -> Run:
    """Wait for the first sign of life, then show the training or leave it alone. Ctrl-C never harms
    it.

    Only then is the launch forgotten: until the user was told of the run, the same command means
    the same run.
    """
    follower, described = Follower(session, run, show_log=follow), Run(run)
    display = session.display
    if follow and not display.live:
        display.note("following; Ctrl-C leaves the training alone")
    try:
        with follower.screen() if follow and display.live else contextlib.nullcontext():
            described = wait_for_start(session, run, follower, pending)
            if described.state == "queued" and not follow:
                never = NEVER in described.detail.waiting
                then = "Stop it, and ask for less" if never else "It starts by itself"
                display.line(f"it {described.detail.waiting}. {then}:")
                display.line(f"  fab -H {session.typed} {'stop' if never else 'status'}")
                return described
            if follow:
                described = follower.until_end()
    except StopWanted:
        return stop_one(session, run)
    except (KeyboardInterrupt, LeaveWanted):
        pending.clear()
        left_alone(session, run)
        return described
    if follow:
        show_end(session, described)
    else:
        display.line("it trains. Come back with:")
        show_ways(session, "")
    return described


def left_alone(session: Session, run: str) -> None:
    session.display.note("the training goes on. Come back with:")
    show_ways(session, f" --run {run}")


def show_ways(session: Session, run: str) -> None:
    for task in (f"follow{run}", "status", f"fetch-results{run}"):
        session.display.line(f"  fab -H {session.typed} {task}")


def wait_for_start(session: Session, run: str, follower: Follower, pending: Pending) -> Run:
    """Raises RunFailed, with the log's end shown, for what ended at once or shows nothing."""
    started, described = follower.until_started(START_WAIT_S)
    pending.clear()
    if described.state == "failed":
        show_log_end(session, run, follower)
        raise_if_failed(described, session)
    if not started:
        raise RunFailed(
            f"{run} has shown no sign of life for {START_WAIT_S:.0f} s (it goes on)",
            host=session.host,
            remedy=f"fab -H {session.typed} follow --run {run}",
        )
    return described


def show_log_end(session: Session, run: str, follower: Follower) -> None:
    if follower.show_log and follower.offset:
        return
    session.display.line(f"the last lines of {run}'s log:")
    last = Follower(session, run)
    last.tail = SHOWN_LOG_LINES * 120
    last.now()


def show_end(session: Session, run: Run) -> None:
    """The result in one line; raises RunFailed for a failure."""
    raise_if_failed(run, session)
    if run.state == "stopped":
        session.display.line(f"{run.run} was stopped: {run.reason or ''}; to go on:")
        session.display.line(f"  fab -H {session.typed} train --resume {run.run}")
        return
    accuracy, epochs = run.summary.test_accuracy, run.summary.epochs
    beside = run.summary.beside_accuracy
    result = f", test accuracy {percent(accuracy)}{beside}" if accuracy is not None else ""
    after = f" after {show(epochs)} epochs" if epochs is not None else ""
    session.display.line(f"{run.run} finished{after}{result}; fetch everything:")
    session.display.line(f"  fab -H {session.typed} fetch-results")


def stop_one(session: Session, run: str) -> Run:
    """Ask for its end, and wait for it."""
    answer = session.ask(Stopping, run=run, who=who_am_i())
    if not answer.asked:
        session.display.line(f"{show(answer.run)} has ended already: {answer.state}")
        return Run(answer.run, answer.state)
    return wait_until_stopped(session, answer.run)


def wait_until_stopped(session: Session, run: str) -> Run:
    """Show that it is being stopped, and how it ended."""
    session.display.doing(f"stopping {run}: it has 60 s to save its state", "stop")
    ended = session.ask(Followed, run=run, until="end", wait_s=STOP_WAIT_S, tail=0)
    described = only_run(list_runs(session, run), session)
    session.display.clear()
    if ended.late:
        raise RunFailed(
            f"{described.run} is still {described.state} after {STOP_WAIT_S:.0f} s",
            host=session.host,
            remedy=f"fab -H {session.typed} logs --run {described.run}",
        )
    reason = f": {described.reason}" if described.reason else ""
    session.display.line(f"{described.run}: {described.state}{reason}")
    if described.state == "stopped":
        session.display.line("to go on:")
        session.display.line(f"  fab -H {session.typed} train --resume {described.run}")
    return described
