"""The end of a rented server's bill: `fetch-results --then-shutdown`, once every run of the project
is here, verified; and what is told of the server's own plan, by `train --shutdown-after`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from remote.errors import ConnectionLost, RemoteError, RunFailed, Unreachable, UsageError
from remote.link.answers import Kept, PlannedShutdown, Shutdown
from remote.link.session import Session
from remote.records import Run
from remote.screen.text import duration, one_line, size
from remote.transfer.fetch import fetch_run
from remote.transfer.receiving import Fetched
from remote.watching.listing import list_runs

GONE_S = 60.0
LOOK_EVERY_S = 3.0
STILL_THERE = (
    f"the command was accepted, but it still answers after {GONE_S:.0f} s: look at your provider's"
    " page, the bill may go on"
)


def shut_down(session: Session, dest: Path, yes: bool) -> None:
    """Fetch every other run, too, then ask and shut down. Raises RunFailed where something there
    has not ended, and changes nothing."""
    runs = list_runs(session)
    left, links = list[str](), list[str]()
    for run, fetched in fetch_others(session, runs, dest):
        left += [f"{run}/{row.path} ({size(row.size)})" for row in fetched.left if row.lost]
        links += [f"{run}/{row.path}" for row in fetched.left if not row.lost]
    command = session.project.settings.shutdown
    told = session.ask(Shutdown, command=command, really=False)
    kept = (
        f"{len(runs)} {'run is' if len(runs) == 1 else 'runs are'} here in {dest}, verified by"
        " sha256."
    )
    if left:
        kept += f" Not here, by remote.results: {one_line(', '.join(left), 400)}."
    if links:
        kept += f" What these lead to is not here: {one_line(', '.join(links), 400)}."
    others = one_line(", ".join(told.others), 200)
    people = f" Other people work on it: {others}." if others else ""
    question = f"{kept}{people} Shut {session.host} down (`{one_line(told.command, 200)}`)?"
    agreed = yes or session.display.confirm(question)
    if agreed is None:
        text = "a server is shut down only after a confirmation; everything is here"
        raise UsageError(text, step="shutdown", remedy="--yes says so beforehand")
    if not agreed:
        session.display.note(f"{session.host} was left running; everything is here")
        return
    if people:
        session.display.note(f"note:{people}")
    if hasattr(os, "sync"):
        os.sync()  # a laptop whose battery ends in the next seconds has the only copy
    try:
        session.ask(Shutdown, command=command, really=True)
    except ConnectionLost:
        pass  # it was quicker than its answer
    session.close()
    came = "shut down" if has_gone(session) else STILL_THERE
    session.display.line(f"{session.host}: {came}")


def fetch_others(
    session: Session, runs: Sequence[Run], dest: Path
) -> Iterator[tuple[str, Fetched]]:
    for run in runs:
        if not run.has_ended and not run.detail.elsewhere:
            text = f"{run.run} is {run.state}: the server was not shut down"
            remedy = f"to wait for it: the same command with --run {run.run}"
            raise RunFailed(text, host=session.host, remedy=remedy)
        yield run.run, fetch_run(session, run.run, dest, ask=False)


def has_gone(session: Session) -> bool:
    """Whether it stops to answer within a minute."""
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline:
        session.display.doing(f"waiting until {session.host} answers no more")
        try:
            session.log_in()
        except (Unreachable, ConnectionLost):
            return True
        except RemoteError:
            pass
        finally:
            session.close()
        time.sleep(LOOK_EVERY_S)
    return False


def tell_plan(session: Session, asked: Mapping[str, Any] | None) -> None:
    """Of a launch with --shutdown-after."""
    if asked:
        plan = PlannedShutdown(asked["grace_s"], asked["unfetched_s"])
        session.display.note(f"{plan_text(session.host, plan)}; to keep it on:")
        session.display.note(f"  fab -H {session.typed} keep")


def plan_text(host: str, plan: PlannedShutdown) -> str:
    left = _span(plan.left_s)
    if plan.problem:
        return f"{host} could not be shut down ({one_line(plan.problem, 300)}); next try in {left}"
    if plan.waiting:
        return f"{host} is not shut down yet: there is {one_line(plan.waiting, 300)}"
    if plan.left_s is None:
        longer = max(plan.grace_s, plan.unfetched_s)
        return (
            f"{host} is shut down {_span(plan.grace_s)} after its last run has ended,"
            f" {_span(longer)} where one is not fetched"
        )
    return f"{host} is shut down in {left}{f' ({plan.why})' if plan.why else ''}"


def keep(session: Session) -> bool:
    """Whether there was a plan, which is cancelled."""
    cancelled = session.ask(Kept).cancelled
    told = (
        f"the plan was: {plan_text(session.host, cancelled)}" if cancelled else "none was planned"
    )
    session.display.line(f"{session.host} is not shut down; {told}")
    return cancelled is not None


def _span(seconds: float | None) -> str:
    return duration(seconds).removesuffix(" 0 s").removesuffix(" 0 min")
