"""`wait`: blocks until runs have ended, through broken connections, for scripts."""

from __future__ import annotations

from remote.link.answers import Followed
from remote.link.session import Session
from remote.records import Run
from remote.screen.text import duration


def wait_for(session: Session, run: str) -> Run:
    """The run as it ended. Nothing of it is shown but what is left of it."""

    def show(event: dict[str, object], blob: bytes) -> None:
        progress = event.get("progress")
        left = progress.get("seconds_left") if isinstance(progress, dict) else None
        if left is not None:
            session.display.doing(f"{run}: {duration(left)} left")

    def ask() -> Followed:
        return session.ask(Followed, show, run=run, until="end", tail=0)

    found = session.patiently(ask, "the run goes on").described
    session.display.clear()
    return found
