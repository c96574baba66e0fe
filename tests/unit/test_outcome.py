"""How an attempt is said to have ended, and whether another one may follow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from remote.agent.launchers import local
from remote.agent.shared.reading import read
from remote.agent.shared.run_records import Asked, RunDetail
from remote.agent.supervisor.outcome import Ended, may_restart, tell_outcome

OOM = "Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


def ended(
    code: int = 1, trainer: bool = True, tail: str = "", summary: bool = False, **more: Any
) -> Ended:
    return Ended(code, trainer, summary, tail, "/data", **more)


@pytest.mark.parametrize(
    ("seen", "state", "cause", "reason", "again"),
    [
        (ended(0, summary=True), "finished", None, None, False),
        (ended(0, trainer=False), "finished", None, None, False),
        (ended(0, trainer=False, stopped="stopped by me"), "stopped", "stopped", "by me", False),
        (ended(0, summary=True, stopped="stopped by me"), "finished", None, None, False),
        (ended(143, disk_problem="full"), "failed", "disk full", "full; it was stopped", False),
        (ended(130, interrupted=True), "stopped", "stopped", "Ctrl-C", False),
        (ended(1, tail=OOM), "failed", "gpu memory", "out of memory on the GPU", True),
        (ended(7), "failed", "disk full", "/data is full", False),
        (ended(1, tail="No space left on device"), "failed", "disk full", "/data", False),
        (ended(-9, kernel_killed=True), "failed", "host memory", "by the kernel", True),
        (ended(-9), "failed", "killed", "killed from outside (SIGKILL)", True),
        (ended(-11, trainer=False), "failed", "killed", "SIGSEGV", True),
        (ended(-99), "failed", "killed", "signal 99", True),
        (ended(5, tail="a\nerror: NaN"), "failed", "diverged", "diverged: error: NaN", False),
        (ended(5, trainer=False), "failed", "exit code", "exit code 5", True),
        (ended(0), "failed", "no summary", "without a summary", False),
        (ended(2, tail="error: x\nbye"), "failed", "exit code", "exit code 2: error: x", False),
        (ended(1), "failed", "exit code", "exit code 1", True),
        (
            ended(3, tail="epoch 4"),
            "failed",
            "exit code",
            "exit code 3; its last line: epoch 4",
            False,
        ),
    ],
)
def test_how_it_ended(
    seen: Ended, state: str, cause: str | None, reason: str | None, again: bool
) -> None:
    told = tell_outcome(seen)
    assert (told.state, told.cause) == (state, cause)
    assert reason is None or reason in str(told.reason)
    assert may_restart(seen, told) is again


@pytest.mark.parametrize(
    ("finish", "state", "cause"), [("summary", "finished", None), ("exit", "failed", "rebooted")]
)
def test_what_was_done_when_the_server_went_down_is_finished(
    tmp_path: Path, finish: str, state: str, cause: str | None
) -> None:
    """The summary is written last; its supervisor had no time to say so."""
    (tmp_path / "summary.json").write_text("{}")
    running = RunDetail("running", host=os.uname().nodename, boot_id="another one", pid=1)
    asked = read(Asked, {"finish": finish})
    told, verdict = local.look(str(tmp_path), running._replace(supervisor_pid=2), asked)
    assert (told.state, told.cause, verdict) == (state, cause, None)
