"""Tasks that start and end a run, and lead into it: train, attach, stop."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from remote.errors import INTERRUPTED, RunFailed, UsageError
from remote.project.options import TrainOptions
from remote.tasks.entry import Work, failure_row, task
from remote.tasks.sweeps import only_one, stop_sweep

if TYPE_CHECKING:
    from remote.link.session import Session
    from remote.records import Run
    from remote.ssh.target import Target


@task(
    options=TrainOptions,
    optional=["shutdown_after"],
    help={
        "recipe": "standard, demo or another of trainer/recipes (default: remote.recipe)",
        "set": "field=value, a field of the recipe to change; may be given several times",
        "data": "where the data is on the server: a path, or `synthetic`; default: the recipe's",
        "devices": "GPUs to use: auto takes the free ones, 0,1 are nvidia-smi's indices",
        "gpus": (
            "how many of the free ones; where too few are free the run waits in the server's queue"
        ),
        "now": "refuse rather than wait for a GPU",
        "time": "a limit, 8h or 30m: the run is told to save, then ended; on Slurm the job's own",
        "stop-if-idle": (
            "the run is told to save, then ended, once its GPUs were idle (below 5%) for this long,"
            " such as 20m"
        ),
        "shutdown-after": (
            "shut the server down this long (default: 30m) after the project's last run has ended;"
            " `keep` cancels that"
        ),
        "keep-unfetched": (
            "with --shutdown-after: the wait while a run is not fetched completely (default: 24h)"
        ),
        "max-restarts": (
            "how often the server itself goes on from the newest checkpoint after a crash or a kill"
        ),
        "notify": (
            "a webhook that is told when the run has ended (ntfy, Slack, Feishu, WeCom, …): its"
            " address, or @FILE with it"
        ),
        "name": "a name for the run, to find it by",
        "resume": (
            "go on with a run that has ended, from its newest checkpoint: latest, its id, the"
            " beginning of it, or its name"
        ),
        "env": (
            "a variable for the run, kept as a secret: NAME takes its value here, @FILE a file"
            " such as @.env; may be given several times"
        ),
        "with-new-code": "with --resume: today's code and packages in place of its own",
        "interactive": "go into the run's terminal at once, to answer what it asks (needs tmux)",
        "follow": (
            "stay and show the training (default on a terminal); the training goes on without you"
        ),
        "no-follow": "come back as soon as the training runs",
        "nodes": "one training on this many hosts (-H a,b), or nodes of the cluster",
        "first-free": "with -H a,b,c: on the server that has the GPUs free, looked at all at once",
        "json": "print only JSON on stdout: the run, as status --json tells it; comes back at once",
    },
)
def train(work: Work, options: TrainOptions, first_free: bool = False) -> int:
    """
    Start a training on the server, which goes on without you.

    In tmux; deploys first if something changed. The laptop may be closed afterwards. Ctrl-C while
    following leaves the training alone.

        fab -H user@host train --recipe demo --set max_epochs=3
        fab -H user@host train --resume latest      # also one that only results/ has
        fab -H a,b train --nodes 2                  # one training on two hosts

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 7
    server, 8 environment, 9 GPU, 10 the training failed, 12 results/ can't be written. After 4 the
    same command never starts a second run.
    """

    options = dataclasses.replace(options, arguments=work.words or None)
    try:
        return start(work, options, first_free)
    except RunFailed as error:
        if run := error.details.get("run"):
            work.tell_json(run)
        raise


def start(work: Work, options: TrainOptions, first_free: bool = False) -> int:
    from remote.runs.launch import train_one
    from remote.runs.resume import resume_one

    by_slurm = work.project.settings.launcher == "slurm"
    if first_free and options.nodes:
        raise UsageError("--first-free chooses one host, --nodes takes all: give one of them")
    if first_free and options.resume and len(work.targets) > 1:
        raise UsageError(
            "--first-free chooses a host for a new run; to resume one, name its host alone"
        )
    if not by_slurm and (options.nodes or (options.resume and len(work.targets) > 1)):
        return start_on_hosts(work, options)
    if first_free and not options.resume:
        work, target = choose_free(work, options)
    else:
        target = work.only_target()
    with work.session(target) as session:
        if options.resume:
            run = resume_one(session, options.resume, options)
        else:
            run = train_one(session, options)
        return show_started(work, session, run, options)


def show_started(work: Work, session: Session, run: Run, options: TrainOptions) -> int:
    from remote.watching.attach import attach as attach_one
    from remote.watching.listing import run_json

    work.tell_json(run_json(run, session.host))
    if session.interrupted:
        if options.interactive:
            work.display.line(f"  fab -H {session.typed} attach --run {run.run}")
        return INTERRUPTED
    if options.interactive and not run.has_ended:
        return attach_one(session, run.run)
    return 0


def start_on_hosts(work: Work, options: TrainOptions) -> int:
    """All of -H, for one training."""
    from remote.hosts.nodes import resume_on_hosts, train_on_hosts

    given = len(work.targets)
    options = dataclasses.replace(options, nodes=options.nodes or given)
    if options.nodes != given:
        text = f"--nodes {options.nodes} needs {options.nodes} hosts, {given} were given"
        raise UsageError(text, step="train", remedy="fab -H a,b train --nodes 2")
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(work.session(target)) for target in work.targets]
        if options.resume:
            session, run = resume_on_hosts(sessions, options.resume, options)
        else:
            session, run = train_on_hosts(sessions, options)
        return show_started(work, session, run, options)


def choose_free(work: Work, options: TrainOptions) -> tuple[Work, Target]:
    """Of the hosts that were given; says which, and why. A host that is down is left out. The work
    is without Slurm where the host that was chosen has none."""
    from remote.hosts.first_free import cut_off_at, first_free, look_at, wanted_gpus

    targets = {target.spec: target for target in work.targets}
    earlier = cut_off_at(work.project, list(targets), options)
    if earlier is not None:
        work.display.line(f"{earlier}: an earlier call was cut off there, and is taken up again")
        return work, targets[earlier]
    looks = [look for _, look in work.those_up(work.on_all(look_at), "it is left out")]
    look, why = first_free(looks, wanted_gpus(work.project, options))
    work.display.line(why)
    by_slurm = work.project.settings.launcher == "slurm"
    if by_slurm and look.waiting is not None:
        work = work.with_settings(launcher="auto")
    return work, targets[look.host]


@task(help={"run": "latest, or a run's id, its beginning or its name"})
def attach(work: Work, run: str = "latest") -> int:
    """
    Go into a run's terminal (tmux); Ctrl-b d comes back.

    With the system's ssh; the training goes on when you leave.

    Exit codes: ssh's own, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused,
    10 it does not run in tmux, 11 no such run.
    """

    from remote.watching.attach import attach as attach_one

    session, name = work.session_of(run)
    with session:
        return attach_one(session, name)


@task(help={"json": "print only JSON on stdout: a list of hosts"})
def keep(work: Work) -> int:
    """
    Keep a server on: cancels `train --shutdown-after`.

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused.
    """

    from remote.runs.shutdown import keep as keep_on

    answers = work.on_all(keep_on)
    work.tell_json(
        [
            failure_row(target, error) if error else {"host": target.spec, "cancelled": cancelled}
            for target, cancelled, error in answers
        ]
    )
    return work.tell_failures(answers)


@task(
    help={
        "run": "latest, or a run's id, its beginning or its name",
        "sweep": "every run of this sweep, on all hosts",
        "gone": "of a run on another host of a shared disk: that host is gone for good",
        "json": "print only JSON on stdout: a list of the runs, as they ended",
    }
)
def stop(work: Work, run: str = "latest", sweep: str | None = None, gone: bool = False) -> int:
    """
    Stop a run politely: it has a minute to save its state.

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 10
    it did not stop, 11 no such run.
    """

    from remote.runs.stop import stop_one
    from remote.watching.listing import run_json

    if sweep:
        only_one(run, sweep)
        return stop_sweep(work, sweep)
    session, name = work.session_of(run)
    with session:
        ended = stop_one(session, name, gone)
        work.tell_json([run_json(ended, session.host)])
    return 0
