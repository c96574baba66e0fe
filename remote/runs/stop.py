"""`stop`: a run is asked to end, and has a minute to save its state."""

from __future__ import annotations

from remote.errors import RunFailed
from remote.link.answers import Followed, Stopping
from remote.link.session import Session, who_am_i
from remote.records import Run
from remote.screen.text import show
from remote.watching.listing import state_line, tell_resume

STOP_WAIT_S = 90.0


def stop_one(session: Session, run: str, gone: bool = False) -> Run:
    """Ask for its end, and wait for it; `gone`: record it, as its host is."""
    answer = session.ask(Stopping, run=run, who=who_am_i(), gone=gone)
    if answer.others:
        session.display.note(f"others go on: {', '.join(map(show, answer.others))}")
    if answer.asked:
        try:
            return wait_until_stopped(session, answer.run, answer.state == "queued")
        except KeyboardInterrupt:
            look = f"fab -H {session.typed} status"
            told = f"{answer.run} was told to stop, and does; how it ends: {look}"
            raise KeyboardInterrupt(told) from None
    described = session.ask(Followed, run=answer.run, until="now", tail=0).described
    if gone:
        tell_end(session, described)
    else:
        session.display.line(f"{show(answer.run)} has ended already: {answer.state}")
    return described


def wait_until_stopped(session: Session, run: str, waits: bool = False) -> Run:
    """Show that it is being stopped, and how it ended."""
    if waits:
        session.display.doing(f"stopping {run}: it waits, and has not begun", "stop")
    else:
        session.display.doing(f"stopping {run}: it has 60 s to save its state", "stop")
    ended = session.ask(Followed, run=run, until="end", wait_s=STOP_WAIT_S, tail=0)
    described = ended.described
    session.display.clear()
    if ended.late:
        typed = f"fab -H {session.typed}"
        remedy = f"{typed} logs --run {described.run}"
        if described.detail.elsewhere:
            remedy = (
                f"if {described.host} is gone for good: {typed} stop --run {described.run} --gone"
            )
        raise RunFailed(
            f"{described.run} is still {described.state} after {STOP_WAIT_S:.0f} s",
            host=session.host,
            remedy=remedy,
        )
    tell_end(session, described)
    return described


def tell_end(session: Session, run: Run) -> None:
    session.display.line(state_line(run))
    if run.state == "stopped":
        tell_resume(session, run)
