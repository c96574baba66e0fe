"""`sweep`, and what `status`, `stop` and `fetch-results` do with --sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from remote.errors import NotFound, UsageError
from remote.project.options import TrainOptions
from remote.ssh.target import typed_together
from remote.tasks.entry import Work, first_code, raise_if_silent, task

if TYPE_CHECKING:
    from remote.hosts.sweep import Book
    from remote.hosts.sweep_table import Row
    from remote.link.session import Session
    from remote.records import Run
    from remote.ssh.target import Target
    from remote.tasks.entry import Answers, Failed


@task(
    options=TrainOptions,
    optional=["shutdown_after"],
    help={
        "grid": "key=value,value,…: a field of the recipe, or {key} behind --; several times",
        "name": "the sweep's name (default: the same for the same command)",
        "recipe": "standard, demo or another of trainer/recipes (default: remote.recipe)",
        "set": "field=value for all points; may be given several times",
        "data": "where the data is on the servers",
        "gpus": "GPUs for each point (default: 1)",
        "max-restarts": "how often the server itself goes on after a crash or a kill",
        "env": "a variable for every point, kept as a secret: NAME, or @FILE such as @.env",
        "shutdown-after": "shut each server down this long (default: 30m) after its last run",
        "keep-unfetched": (
            "with --shutdown-after: the wait while a run is not fetched completely (default: 24h)"
        ),
    },
)
def sweep(
    work: Work, options: TrainOptions, grid: Sequence[str] = (), name: str | None = None
) -> int:
    """
    Start a run for every combination of values, on all hosts.

    They are spread over the hosts' own queues; the laptop may be closed afterwards. The same
    command again starts what is not started yet, and nothing twice. A server without GPUs trains
    one point after the other.

        fab -H a,b sweep --grid learning_rate=0.001,0.002 --grid seed=1,2,3 --name rates
        fab -H a,b status --sweep rates
        fab -H a,b fetch-results --sweep rates        # with sweep.csv and sweep.png
        fab -H a sweep --grid lr=0.1,0.2 -- --lr {lr}  # for a command of one's own

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 7
    server, 8 environment, 9 GPU.
    """
    from remote.deploy.deploy import ask_facts
    from remote.hosts import sweep as sweeps
    from remote.hosts.sweep_here import runs_here
    from remote.watching.listing import list_runs

    options = dataclasses.replace(options, arguments=work.words or None)
    values = sweeps.parse_grid(grid)
    for point in values:  # what can't be trained is said before anything is sent
        sweeps.request_of(work.project, options, point)
    chosen = sweeps.check_name(name or sweeps.default_name(work.project, options, grid))
    book = sweeps.Book(work.project, chosen)
    book.add(values, sweeps.shared_by_all(work.project, options))
    answers = work.on_all(lambda session: (ask_facts(session), list_runs(session)))
    up = work.those_up(answers, "its part goes to the others")
    found = [(str(run.host), run) for run in runs_here(work.project.dest, chosen).values()]
    for target, (_, runs) in up:
        found += [(target.spec, run) for run in runs if run.asked.sweep == chosen]
    if known := book.adopt(work.project, options, found):
        work.display.line(
            f"{known} of {len(book.points)} points were started before, from elsewhere: not started"
            " again"
        )
    assigned = sweeps.assign(book.points, {target.spec: facts for target, (facts, _) in up})

    def start(session: Session) -> None:
        points = assigned[session.host]
        started = sweeps.start_points(session, book, points, options)
        work.display.line(f"{session.host}: runs started: {started} (points: {len(points)})")

    able = [target for target in work.targets if target.spec in assigned]
    failed = work.on_each(able, start)
    return tell_started(work, book, failed)


def tell_started(work: Work, book: Book, failed: Failed) -> int:
    """What stands now, and what to type next."""
    missing = sum(not point.started for point in book.points)
    typed = typed_together(work.targets)
    work.display.line(
        f"{book.name}: {len(book.points) - missing} of {len(book.points)} points are started"
    )
    if missing:
        work.display.note(
            f"not started: {missing} point{'s' * (missing != 1)}; the same command starts them"
        )
    work.display.line("see them, and fetch them:")
    work.display.line(f"  fab -H {typed} status --sweep {book.name}")
    work.display.line(f"  fab -H {typed} fetch-results --sweep {book.name}")
    return first_code(failed)


# -- with --sweep


def rows_of(work: Work, name: str, answers: Answers, dest: Path) -> list[Row]:
    """The sweep's points in its own order: what the hosts tell, else what was fetched to `dest`,
    and what only our own record knows. Raises NotFound where nobody knows the sweep."""
    from remote.hosts.sweep import Book, check_name
    from remote.hosts.sweep_here import runs_here
    from remote.hosts.sweep_table import NOT_ASKED, NOT_FOUND, NOT_STARTED, UNREACHABLE, Row

    book = Book(work.project, check_name(name))
    told = {run: (found.host, found) for run, found in runs_here(dest, name).items()}
    for target, runs in runs_of(name, answers):
        told |= {run.run: (target.spec, run) for run in runs}
    asked = {target.spec: UNREACHABLE if error else NOT_FOUND for target, _, error in answers}
    rows = []
    for point in book.points:
        host, run = told.pop(point.run or "", (None, None))
        remark = asked.get(point.host or "", NOT_ASKED) if point.sent else NOT_STARTED
        rows.append(Row(point.values, point.host or host, run, remark))
    found = sorted(told.values(), key=lambda pair: pair[1].run)
    rows += [Row(run.asked.point, host, run) for host, run in found]
    if not rows:
        raise_if_silent(answers)
        hosts = ", ".join(target.spec for target in work.targets)
        raise NotFound(
            f"no sweep {name!r:.80} here or on {hosts}", remedy="fab -H … status lists all runs"
        )
    return rows


def runs_of(name: str, answers: Answers) -> Iterator[tuple[Target, list[Run]]]:
    """Host by host, the sweep's runs that are on it."""
    for target, runs, _ in answers:
        mine = [run for run in runs or [] if run.asked.sweep == name]
        if mine:
            yield target, mine


def status_of_sweep(work: Work, name: str) -> int:
    from remote.hosts.sweep_table import show_sweep, sweep_json
    from remote.watching.listing import list_runs

    answers = work.on_all(list_runs)
    rows = rows_of(work, name, answers, work.project.dest)
    work.tell_json(sweep_json(name, rows))
    if not work.json:
        show_sweep(work.display, name, rows)
    return work.tell_failures(answers)


def stop_sweep(work: Work, name: str) -> int:
    """Every run of it that has not ended; what waits goes first, so that nothing moves up."""
    from remote.link.answers import Stopping
    from remote.link.session import who_am_i
    from remote.runs.stop import wait_until_stopped
    from remote.watching.listing import list_runs, run_json

    answers, ended = work.on_all(list_runs), list[object]()
    rows_of(work, name, answers, work.project.dest)
    live = {target: [run for run in runs if run.goes_on] for target, runs in runs_of(name, answers)}

    def stop(session: Session) -> None:
        runs = live[session.target]
        for run in sorted(runs, key=lambda run: run.state != "queued"):
            session.ask(Stopping, run=run.run, who=who_am_i())
        for run in runs:
            if run.state == "running":
                wait_until_stopped(session, run.run)
        work.display.line(f"{session.host}: stopped runs: {len(runs)}")
        names = {run.run for run in runs}
        told = [run for run in list_runs(session) if run.run in names]
        ended.extend(run_json(run, session.host) for run in told)

    failed = work.on_each([target for target, runs in live.items() if runs], stop)
    work.tell_json(ended)
    return work.tell_failures(answers) or first_code(failed)


def fetch_sweep(work: Work, name: str, dest: Path) -> int:
    """All of its runs, each as `fetch-results` does, and the comparison."""
    from remote.hosts.sweep_table import show_sweep, sweep_json, tell_files
    from remote.screen.text import size
    from remote.transfer.fetch import fetch_run
    from remote.watching.listing import list_runs

    answers = work.on_all(list_runs)
    rows = rows_of(work, name, answers, dest)
    there = dict(runs_of(name, answers))

    def fetch(session: Session) -> None:
        runs = there[session.target]
        received = sum(fetch_run(session, run.run, dest, ask=False).received for run in runs)
        count, came = len(runs), size(received)
        points = f"{session.host}: {count} point{'s' * (count != 1)}, {came} received, all verified"
        work.display.line(points)

    failed = work.on_each(there, fetch)
    work.tell_json(sweep_json(name, rows))
    if not work.json:
        show_sweep(work.display, name, rows)
    tell_files(work.display, dest / "sweeps" / name, name, rows)
    return work.tell_failures(answers) or first_code(failed)


def only_one(run: str, name: str) -> None:
    if run != "latest":
        raise UsageError(f"--run {run} and --sweep {name}: give one of them")
