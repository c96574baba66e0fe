"""`train`: from what was asked to a run that shows a sign of life, and on to its end where somebody
watches."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from remote.agent.shared.run_records import Nodes
from remote.deploy.deploy import Deployed, deploy
from remote.deploy.shown import show_steps
from remote.errors import RemoteError
from remote.link.answers import Started
from remote.link.session import Session, who_am_i
from remote.project.options import TrainOptions
from remote.records import Asked, Run
from remote.runs.limits import limits_of
from remote.runs.placement import (
    Launch,
    Placement,
    launch_on_free_gpus,
    prepare_launch,
    start_patiently,
    with_weights,
)
from remote.runs.request import (
    GO_ON,
    Pending,
    Place,
    TrainRequest,
    name_run,
    parse_request,
    plan_argv,
    start_run,
)
from remote.runs.shutdown import tell_plan
from remote.runs.stop import stop_one
from remote.screen.text import percent, show
from remote.watching.follow import Follower, LeaveWanted, StopWanted
from remote.watching.listing import list_runs, raise_if_failed, run_failed, state_line, tell_resume

START_WAIT_S = 180.0
"""Importing torch from a cold network disk takes minutes at times."""
NEVER = "can never start"
"""In Slurm's reasons, as the agent words them."""
SHOWN_LOG_LINES = 25


def train_one(session: Session, options: TrainOptions) -> Run:
    request = parse_request(session.project, options)
    deployed = deploy(session, data=options.data)
    show_steps(session, deployed, only_changes=True)
    pending = Pending(session.project, session.host, request, deployed.release.tree)
    try:
        run = start_once(session, request, deployed, pending)
        return watch(session, run, options.follows(session.display), pending.clear)
    finally:
        pending.release()


def start_once(
    session: Session, request: TrainRequest, deployed: Deployed, pending: Pending
) -> str:
    """Under an id that an earlier call, cut off, may have chosen already."""
    run = pending.take() or name_run(session.project, request)
    pending.write(run)
    if any(known.run == run for known in deployed.facts.runs):
        plan = {"shutdown": request.shutdown}
        # An earlier call has made it, with GPUs of its own choice, which it may be using by now.
        answer = start_patiently(session, lambda: start_run(session, run, Asked(), plan))
    else:
        with pending.launching():
            answer = start_new(with_weights(prepare_launch(session, request, deployed)), run)
    if answer.note:
        session.display.note(f"note: {answer.note}")
    if answer.again:
        session.display.line(
            f"run {run}: an earlier call that was cut off has started it on {session.host}; no"
            " second one is started"
        )
    else:
        session.display.line(f"run {run}: {started_where(answer)} on {session.host}")
    tell_plan(session, request.shutdown)
    return run


def started_where(answer: Started) -> str:
    if answer.launched == "slurm":
        return f"submitted to Slurm{f' as job {answer.job}' if answer.job else ''}"
    return f"started {'in tmux' if answer.launched == 'tmux' else 'without tmux (setsid)'}"


def start_new(launch: Launch, run: str) -> Started:
    def start(placement: Placement) -> Started:
        asked = asked_for(launch, run, placement)
        return start_run(launch.session, run, asked, launch.request.beside)

    return launch_on_free_gpus(launch, start)


def asked_for(launch: Launch, run: str, placement: Placement) -> Asked:
    """run.json of a new run."""
    project, request = launch.session.project, launch.request
    settings, own = project.settings, project.has_own_trainer
    there, command = place_of(launch, run, placement), settings.command
    recipe = request.recipe or settings.recipe
    plain = dataclasses.replace(request, fields=())
    asked = Asked(
        name=request.name,
        recipe=recipe if own else None,
        fields=dict(request.fields),
        command=command,
        created=time.time(),
        finish="summary" if own else "exit",
        argv=plan_argv(project, command, request, there, ("--recipe", recipe)),
        resume_argv=plan_argv(project, command, plain, there, GO_ON),
    )
    return with_code(next_attempt(asked, launch, placement), launch.deployed)


def place_of(launch: Launch, run: str, placement: Placement) -> Place:
    made = launch.deployed.environment
    return Place(made.python, f"{launch.root}/runs/{run}", launch.images, placement.devices)


def with_code(asked: Asked, deployed: Deployed) -> Asked:
    release, local = deployed.release, tuple(one._asdict() for one in deployed.local)
    return asked._replace(release=release.tree, origin=release.origin, local=local)


def next_attempt(asked: Asked, launch: Launch, placement: Placement) -> Asked:
    """run.json for an attempt, the first or a later one. Limits stay where none is given."""
    request, made, gpus = launch.request, launch.deployed.environment, placement.gpus
    launcher = launch.session.project.settings.launcher
    limit_s, idle_s = limits_of(request, launcher)
    return asked._replace(
        data=request.data,
        data_path=launch.images,
        devices=request.devices,
        arguments=request.arguments or (),
        env=tuple(sorted({*asked.env, *request.env})),
        environment_key=made.key,
        requirements_hash=made.requirements_hash,
        python=made.python,
        prefix=made.prefix or "",
        who=who_am_i(),
        max_restarts=request.max_restarts,
        limit_s=limit_s or asked.limit_s,
        idle_s=idle_s or asked.idle_s,
        launcher=launcher,
        nodes=Nodes(request.nodes or 1),
        gpus=None if gpus is None else tuple(gpu.uuid for gpu in gpus),
        gpu_names=tuple(str(gpu.index) for gpu in gpus or ()),
        queue=placement.queue,
        wanted_gpus=placement.wanted,
        slurm=placement.slurm,
        later=placement.later,
    )


def watch(
    session: Session,
    run: str,
    follow: bool,
    forget: Callable[[], None] = lambda: None,
    tail: int | None = None,
) -> Run:
    """Wait for the first sign of life, then show the training or leave it alone. Ctrl-C never harms
    it.

    `forget`: the launch. Until the user was told of the run, the same command means the same run.
    `tail`: so many lines of what it has written before.
    """
    follower, described = Follower(session, run, show_log=follow), Run(run)
    follower.tail = tail if follow else 0
    display = session.display
    if follow and not display.live:
        display.note("following; Ctrl-C leaves the training alone")

    def look() -> Run:
        started = wait_for_start(session, run, follower, forget)
        return follower.until_end() if follow else started

    try:
        described = follower.on_screen(look) if follow and display.live else look()
    except StopWanted:
        return stop_one(session, run)
    except (KeyboardInterrupt, LeaveWanted) as left:
        forget()
        session.interrupted = isinstance(left, KeyboardInterrupt)
        display.interrupted(f"{follower.goes_on}. Come back with:")
        show_ways(session, f" --run {run}")
        return look_again(session, described) if display.json_mode else described
    if follow:
        show_end(session, described)
    elif described.state == "queued":
        never = NEVER in described.detail.waiting
        then = "Stop it, and ask for less" if never else "It starts by itself"
        display.line(f"queued: {described.detail.waiting}")
        display.line(f"{then}:")
        display.line(f"  fab -H {session.typed} {'stop' if never else 'status'}")
    else:
        display.line("it trains. Come back with:")
        show_ways(session, "")
    return described


def look_again(session: Session, run: Run) -> Run:
    """As it stands, where nobody waited for it; as it was known, where the server does not say."""
    session.close()  # in the middle of an answer, perhaps
    try:
        return next(iter(list_runs(session, run.run)), run)
    except RemoteError:
        return run


def show_ways(session: Session, run: str) -> None:
    for task in (f"follow{run}", "status", f"fetch-results{run}"):
        session.display.line(f"  fab -H {session.typed} {task}")


def wait_for_start(
    session: Session, run: str, follower: Follower, forget: Callable[[], None]
) -> Run:
    """Raises RunFailed, with the log's end shown, for what ended at once or shows nothing."""
    started, described = follower.until_started(START_WAIT_S)
    forget()
    if described.state == "failed":
        show_log_end(session, run, follower)
        raise_if_failed(described, session)
    if not started:
        text = f"{run} has shown no sign of life for {START_WAIT_S:.0f} s (it goes on)"
        raise run_failed(described, session, text, f"fab -H {session.typed} follow --run {run}")
    return described


def show_log_end(session: Session, run: str, follower: Follower) -> None:
    if follower.show_log and follower.offset:
        return
    session.display.line(f"the last lines of {run}'s log:")
    last = Follower(session, run)
    last.tail = SHOWN_LOG_LINES
    last.now()


def show_end(session: Session, run: Run) -> None:
    """The result in one line; raises RunFailed for a failure."""
    raise_if_failed(run, session)
    if run.state == "stopped":
        session.display.line(state_line(run))
        tell_resume(session, run)
        return
    accuracy, epochs = run.summary.test_accuracy, run.summary.epochs
    beside = run.summary.beside_accuracy
    result = f", test accuracy {percent(accuracy)}{beside}" if accuracy is not None else ""
    after = f" after {show(epochs)} epochs" if epochs is not None else ""
    session.display.line(f"{run.run} finished{after}{result}; fetch everything:")
    session.display.line(f"  fab -H {session.typed} fetch-results --run {run.run}")
