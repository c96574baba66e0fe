"""What `watch` shows of hosts that answer, and of one that no longer does."""

from __future__ import annotations

import time

import pytest

from remote.errors import ConnectionLost
from remote.link.answers import Overview
from remote.records import Gpu, GpuReport
from remote.tasks.overview import Board

GPU = Gpu(0, "GPU-1", "H200", 100, 0, utilization_percent=0)


def test_figures_of_a_host_that_has_gone_silent_are_told_to_be_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    board = Board(["a", "b"], every_s=2)
    answer = Overview(GpuReport((GPU,)))
    board.put("a", answer)
    board.put("b", answer)
    now[0] += 12
    board.put("a", answer)
    assert [row[7] for row in board.rows()] == ["free", "free, as told 12s ago"]
    now[0] += 30
    board.put("a", answer)
    board.put("b", ConnectionLost("no answer for 30 s", host="b"))
    assert [row[7] for row in board.rows()] == ["free", "unreachable"]
    assert board.rows()[1][8] == "no answer for 30 s; it was last heard 42s ago"
