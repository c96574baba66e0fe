"""How a sweep's points are told."""

from __future__ import annotations

import io

from remote.hosts.sweep_table import NOT_STARTED, UNREACHABLE, Row, show_sweep
from remote.records import Run
from remote.screen.display import Display


def test_what_is_not_known_does_not_count_as_not_started() -> None:
    out = io.StringIO()
    rows = [
        Row({"seed": "1"}, "a", Run("r", "running")),
        Row({"seed": "2"}, "b", None, UNREACHABLE),
        Row({"seed": "3"}, None, None, NOT_STARTED),
    ]
    show_sweep(Display(out=out), "rates", rows)
    assert out.getvalue().endswith("rates: 3 points: 1 running, 1 unreachable, 1 not started\n")
