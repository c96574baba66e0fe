"""Where in a run's log one begins to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote.agent.runs import follow


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
