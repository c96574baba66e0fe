"""`fetch-results --watch`: a mirror of a run that is kept up to date while it trains, through
broken connections, to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from remote.link.answers import Followed
from remote.link.session import Session
from remote.records import Run
from remote.screen.text import size
from remote.screen.training import describe_figures, describe_progress
from remote.transfer.fetch import fetch_run
from remote.transfer.receiving import Fetched

EVERY_S = 30.0
"""Between two looks; a run that ends is fetched at once."""


def watch_run(session: Session, run: str, dest: Path, ask: bool = True) -> Fetched:
    """Fetch again and again; returns what the last fetch did, once the run has ended and all of it
    is here.

    Raises what no waiting mends: no such run, no room here, a server that lies.
    """
    session.display.note("mirroring; Ctrl-C leaves the training alone and keeps what is here")
    received = 0
    for fetched in mirror(session, run, dest, EVERY_S, ask):
        received += fetched.received
        session.display.doing(mirror_line(fetched.run, received))
    session.display.clear()
    return fetched


def mirror(
    session: Session, run: str, dest: Path, every_s: float, ask: bool = False
) -> Iterator[Fetched]:
    """Every fetch's outcome, at once and then every `every_s` and when the run ends, with which it
    ends; over broken connections."""
    name = run

    def look() -> Fetched:
        return fetch_run(session, name, dest, ask)

    def wait() -> object:
        return session.ask(Followed, run=name, until="end", wait_s=every_s, tail=0)

    while True:
        fetched = session.patiently(look, "what was fetched stays")
        ask = False
        name = fetched.run.run  # "latest" stays the run that it was
        yield fetched
        if not fetched.run.has_ended:
            session.patiently(wait, "what was fetched stays")
        elif None not in fetched.gone.values():
            return


def mirror_line(run: Run, received: int) -> str:
    """What is known of the training, how much has come, and when it was looked at."""
    told = [describe_progress(run.progress), describe_figures(run.progress)]
    mirrored = [f"{size(received)} mirrored", time.strftime("%H:%M:%S")]
    return "  ".join([run.state, *filter(None, told), *mirrored])
