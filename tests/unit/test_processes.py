"""What the agent knows of processes, by /proc and, where a system has none, by ps."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from remote.agent.machine import processes


@pytest.fixture(params=["proc", "ps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "ps" and shutil.which("ps") is None:
        pytest.skip("needs ps")
    if request.param == "proc" and not processes.HAS_PROC:
        pytest.skip("this system has no /proc")
    monkeypatch.setattr(processes, "HAS_PROC", request.param == "proc")
    yield request.param


def test_a_process_is_known_again_and_not_after_its_end(way: str) -> None:
    words = ["sh", "-c", "sleep 60 & wait"]
    with subprocess.Popen(words, start_new_session=True) as shell:
        born = processes.start_time(shell.pid)
        assert born is not None and processes.is_same(shell.pid, born)
        assert processes.child_start_time(shell.pid) == born
        assert not processes.is_same(shell.pid, born + 1)
        while not (children := processes.children_of(shell.pid)):
            time.sleep(0.05)
        assert sorted([shell.pid, *children]) == sorted(processes.group_members(shell.pid))
        assert shell.pid in processes.children_of(os.getpid())
        os.killpg(shell.pid, 9)
        while os.waitid(os.P_PID, shell.pid, os.WEXITED | os.WNOWAIT) is None:
            time.sleep(0.05)
        assert not processes.is_same(shell.pid, born), "a zombie is dead"
        assert processes.child_start_time(shell.pid) == born
    assert processes.start_time(shell.pid) is None and not processes.is_same(shell.pid, None)
