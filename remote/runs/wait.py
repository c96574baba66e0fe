"""`wait`: blocks until runs have ended, through broken connections, for scripts."""

from __future__ import annotations

from remote.link.answers import Followed
from remote.link.events import FollowEvent, heard
from remote.link.session import Session
from remote.records import Run
from remote.screen.text import duration


def wait_for(session: Session, run: str) -> Run:
    """The run as it ended. Nothing of it is shown but what is left of it."""

    def show(event: FollowEvent, blob: bytes) -> None:
        left = event.progress.seconds_left if event.progress is not None else None
        if left is not None:
            session.display.doing(f"{run}: {duration(left)} left")

    def ask() -> Followed:
        return session.ask(Followed, heard(FollowEvent, show), run=run, until="end", tail=0)

    found = session.patiently(ask, "the run goes on").described
    session.display.clear()
    return found
