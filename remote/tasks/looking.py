"""Tasks that look at runs: status, follow, watch, logs, wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from remote.errors import INTERRUPTED, NotFound, RunFailed, UsageError
from remote.tasks.entry import Work, task
from remote.tasks.sweeps import only_one, runs_of, status_of_sweep

if TYPE_CHECKING:
    from remote.link.session import Session


@task(
    help={
        "sweep": "compare the points of this sweep",
        "json": "print only JSON on stdout: a list, newest run first",
    }
)
def status(work: Work, sweep: str | None = None) -> int:
    """
    List all runs of this project on the server.

    With state, start, duration, progress, accuracy and GPUs. With -H a,b all hosts are asked at
    once.

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused.
    A server that can't be reached is shown as unreachable, never as a failed run.
    """
    from remote.link.answers import Runs
    from remote.project.own_trainer import no_trainer
    from remote.tasks.run_tables import show_plans, show_status, status_json

    if sweep:
        return status_of_sweep(work, sweep)
    told = work.on_all(lambda session: session.ask(Runs))
    answers = [(target, list(runs.runs) if runs else None, error) for target, runs, error in told]
    plans = {target.spec: runs.shutdown for target, runs, _ in told if runs and runs.shutdown}
    work.tell_json(status_json(answers, plans))
    if not work.json and len(answers) == 1 and answers[0][2]:
        raise answers[0][2]
    if not work.json:
        project = work.project
        missing = no_trainer(project.settings.command, project.directory)
        show_status(work.display, answers, missing)
        show_plans(work.display, work.targets, plans)
    return work.first_failure(answers)


@task(help={"run": "latest, or a run's id, its beginning or its name"})
def follow(work: Work, run: str = "latest") -> int:
    """
    Show a run live: progress, curves, GPUs and its log.

    q leaves it alone, s stops it. Without a terminal the log comes line by line. Ctrl-C leaves the
    training alone, too.

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 11
    no such run.
    """
    from remote.runs.stop import stop_one
    from remote.watching.follow import LAST_LINES, Follower, LeaveWanted, StopWanted
    from remote.watching.listing import state_line

    session, run = work.session_of(run)
    with session:
        follower = Follower(session, run)
        follower.tail = LAST_LINES
        try:
            until_end = follower.until_end
            ended = follower.on_screen(until_end) if work.display.live else until_end()
        except StopWanted:
            stop_one(session, follower.view.run)
            return 0
        except (LeaveWanted, KeyboardInterrupt) as left:
            work.display.interrupted(f"{follower.goes_on}; the same command shows it again")
            return INTERRUPTED if isinstance(left, KeyboardInterrupt) else 0
        work.display.note(state_line(ended))
    return 0


@task(
    help={
        "json": "print only JSON on stdout, once: a list of hosts",
        "every": "seconds between two looks",
    }
)
def watch(work: Work, every: float = 3.0) -> int:
    """
    Show GPUs and runs of all hosts in one live table.

        fab -H gpu-a,gpu-b watch

    q leaves. Without a terminal the table is shown once.

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused.
    """
    from remote.tasks.overview import watch_hosts

    return watch_hosts(work, every)


@task(
    help={
        "run": "latest, or a run's id, its beginning or its name",
        "follow": "stay and show new lines until the run ends",
        "lines": "how many of the last lines to begin with",
        "json": "print only JSON on stdout",
    }
)
def logs(work: Work, run: str = "latest", follow: bool = False, lines: int = 40) -> int:
    """
    Show the end of a run's log, or with --follow all to come.

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 11
    no such run.
    """
    if lines < 0:
        raise UsageError("--lines must not be negative")
    session, run = work.session_of(run)
    if follow or len(work.targets) == 1:
        with session:
            work.tell_json(log_of(work, session, run, follow, lines))
        return 0

    def show(session: Session) -> Iterator[dict[str, object]]:
        work.display.note(f"{session.host}:")
        yield log_of(work, session, run, follow, lines)

    return work.in_turn(show)


def log_of(work: Work, session: Session, run: str, follow: bool, lines: int) -> dict[str, object]:
    """Show it; for scripts the run with the lines of its log."""
    from remote.watching.follow import Follower
    from remote.watching.listing import run_json, state_line

    text: list[str] = []
    follower = Follower(session, run, sink=text.append if work.json else None)
    follower.tail = lines
    ended = follower.until_end() if follow else follower.now()
    if not work.json and ended.state != "running":
        work.display.note(state_line(ended))
    return run_json(ended, session.host) | {"log": "".join(text).splitlines()}


@task(
    help={
        "run": "latest, or a run's id, its beginning or its name",
        "sweep": "every run of this sweep, on all hosts",
        "json": "print only JSON on stdout: a list of the runs, as status tells them",
    }
)
def wait(work: Work, run: str = "latest", sweep: str | None = None) -> int:
    """
    Block until a run has ended; the exit code says how.

    Through broken connections, for scripts.

        fab -H user@host train && fab -H user@host wait && fab -H user@host fetch-results

    Exit codes: 0 it finished, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login
    refused, 10 it failed or was stopped, 11 no such run.
    """
    from remote.watching.follow import Follower
    from remote.watching.listing import list_runs, run_json, state_line

    failed = 0
    if sweep:
        only_one(run, sweep)
        answers = work.on_all(list_runs)
        found = runs_of(sweep, answers)
        wanted = [(work.session(target), [each.run for each in runs]) for target, runs in found]
        failed = work.tell_failures(answers)
        if not wanted and not failed:
            raise NotFound(f"no run of the sweep {sweep!r:.80} on these hosts", step="wait")
    else:
        session, name = work.session_of(run)
        wanted = [(session, [name])]
    ended = []
    for session, names in wanted:
        session.was_there = bool(sweep)  # it has answered, so what is wrong later may mend itself
        with session:
            for name in names:
                follower = Follower(session, name, show_log=False)
                follower.tail = 0
                run_there = follower.until_end()
                work.display.line(f"{session.host}: {state_line(run_there)}")
                ended.append((session.host, run_there))
    work.tell_json([run_json(each, host) for host, each in ended])
    fine = all(each.state == "finished" for _, each in ended)
    return failed or (0 if fine else RunFailed.exit_code)
