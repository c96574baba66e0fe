"""Which run is followed, and from where in its log."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from remote.agent.results import follow
from remote.errors import ConnectionLost
from remote.link.answers import Followed
from remote.link.link import OnEvent
from remote.link.session import Project, Session
from remote.records import Run, Settings
from remote.screen.display import Display
from remote.ssh.target import Target
from remote.watching.follow import Follower
from tests.support.faults import short_pauses


@pytest.mark.parametrize(
    ("log", "lines", "shown"),
    [
        ("a\nb\nc\n", 2, "b\nc\n"),
        ("a\nb\nnot ended", 2, "b\nnot ended"),
        ("a\nb\n", 9, "a\nb\n"),
        ("a\n\n\n", 2, "\n\n"),
        ("a\nb\n", 0, ""),
        ("", 3, ""),
        ("a long line\nb\nc\n", 9, "b\nc\n"),
    ],
)
def test_a_log_is_shown_from_its_last_lines_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, lines: int, shown: str
) -> None:
    monkeypatch.setattr(follow, "MOST_TAIL", 14)
    place = tmp_path / "train.log"
    place.write_text(log)
    assert log[follow.start_of_last(str(place), lines) :] == shown


def test_a_log_that_is_not_there_is_read_from_its_beginning(tmp_path: Path) -> None:
    assert follow.start_of_last(str(tmp_path / "train.log"), 3) == 0


def test_latest_stays_the_run_that_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that somebody starts while the connection is lost is another one."""
    asked = []

    def ask(kind: type[Followed], on_event: OnEvent, **arguments: Any) -> Followed:
        asked.append((arguments["run"], arguments["offset"]))
        on_event({"log": len(asked) - 1}, b"x")
        on_event({"state": {"run": "first", "state": "running"}}, b"")
        if len(asked) < 2:
            raise ConnectionLost("gone")
        return Followed(Run("first", "finished"))

    display = Display(out=io.StringIO(), notes=io.StringIO())
    session = Session(Target("box"), Project(tmp_path, Settings()), display)
    monkeypatch.setattr(session, "ask", ask)
    with short_pauses():
        Follower(session, "latest").until_end()
    assert asked == [("latest", 0), ("first", 1)]
