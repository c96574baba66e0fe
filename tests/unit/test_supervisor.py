"""The supervisor where its disk, or something in itself, fails: the training is not the one to pay
for it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from remote.agent.machine.processes import group_members
from remote.agent.root.calls import Call, Owner
from remote.agent.root.disk import Disk
from remote.agent.root.paths import Layout
from remote.agent.run_files import records
from remote.agent.run_files.records import LiveRuns
from remote.agent.runs import launch
from remote.agent.runs.queue import Waiting
from remote.agent.supervisor import disk_guard
from tests.support.faults import wait_until

DRIVER = """
import errno, json, sys
from remote.agent.supervisor import endings, run_state, supervisor
from remote.agent.launchers import slurm
from remote.agent.launchers.seam import Launched
from remote.agent.shared.states import Outcome

save = run_state.save
left = {number}

def fails(value, directory):
    global left
    if left and ({when}):
        left -= 1
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    save(value, directory)

run_state.save = fails
endings.LOOK_EVERY_S = run_state.HEARTBEAT_S = run_state.END_AGAIN_S = 0.05
{more}
sys.exit(supervisor.main(sys.argv[1:]))
"""


def supervise(
    run: Path, script: str, when: str = "", number: int = 0, more: str = "", **asked: Any
) -> subprocess.Popen[bytes]:
    """A run's supervisor, whose records fail `number` times `when` that holds."""
    (run / "work").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"argv": ["sh", "-c", script], **asked}))
    (run / "state.json").write_text(json.dumps({"state": "queued", "token": "t"}))
    driver = DRIVER.format(when=when or "False", number=number, more=more)
    hidden = ("TMUX", "SLURM")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    return subprocess.Popen(
        [sys.executable, "-c", driver, str(run), "t"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment | {"REMOTE_RESTART_S": "30"},
        start_new_session=True,
    )


def state_of(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((run / "state.json").read_text())
    return state


def test_news_that_can_not_be_written_ends_nothing(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    own = supervise(run, "sleep 1", "value.heartbeat", 9, launcher="slurm")
    own.communicate(timeout=30)
    state = state_of(run)
    assert (own.returncode, state["state"], state["exit_code"]) == (0, "finished", 0), state


def test_what_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    own = supervise(run, "exec sleep 60", "value.state == 'running'", 3)
    wait_until(lambda: state_of(run)["state"] == "running")
    own.send_signal(signal.SIGTERM)
    own.communicate(timeout=30)
    assert state_of(run)["state"] == "stopped"


def test_the_end_is_written_down_once_the_disk_takes_it(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    supervise(run, "echo up", "value.state == 'finished'", 6).communicate(timeout=30)
    assert (state_of(run)["state"], state_of(run)["exit_code"]) == ("finished", 0)


def test_a_run_that_was_removed_is_not_waited_for(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    own = supervise(run, f"mv {run} {tmp_path}/gone")
    own.communicate(timeout=30)
    assert own.returncode == 1 and not run.exists()


SAVES = "trap 'echo saved > saved; exit 0' TERM; echo up; sleep 60 & wait"


def test_where_the_supervisor_fails_the_training_may_save_and_nothing_goes_on(
    tmp_path: Path,
) -> None:
    """Else a resumption would train beside it, in the same directory."""
    run = tmp_path / "runs" / "r"
    breaks = (
        "def problem(self):\n"
        "    if run_state.os.path.exists(self.directory + '/break'):\n"
        "        raise ValueError('a bug')\n"
        "run_state.DiskGuard.problem = problem"
    )
    own = supervise(run, SAVES, more=breaks)
    log = run / "train.log"
    wait_until(lambda: log.exists() and "up" in log.read_text())
    (run / "break").touch()
    own.communicate(timeout=30)
    state = state_of(run)
    assert (state["state"], state["reason"]) == ("failed", "the supervisor failed: a bug")
    assert (run / "work" / "saved").exists() and not group_members(state["pid"])


def test_on_a_disk_that_takes_nothing_it_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "r"
    own = supervise(run, SAVES)
    wait_until(lambda: state_of(run)["state"] == "running")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(launch, "write_json", full)
    call = Call()
    call.layout, call.owner = Layout(str(tmp_path)), Owner("p", None)
    assert launch.run_stop(call, "r", "me")["asked"]
    own.communicate(timeout=30)
    assert (state_of(run)["state"], state_of(run)["reason"]) == ("stopped", "stopped by a signal")
    assert (run / "work" / "saved").exists()


@pytest.mark.parametrize(
    ("free", "inodes", "told"),
    [
        (1 << 30, None, None),
        (1 << 30, 1_000, None),
        (1 << 30, 0, None),  # no count is kept
        (6 << 20, None, "the disk at / is full: 6 MiB are free"),
        (1 << 30, 3, "the disk at / is full: it takes 3 more files (inodes)"),
    ],
)
def test_there_must_be_room_for_a_checkpoint_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, inodes: int | None, told: str | None
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(bytes(3 << 20))
    disk = Disk("/", free, 1 << 40, inodes, noexec=False)
    monkeypatch.setattr(disk_guard, "disk_of", lambda place: disk)
    assert disk_guard.DiskGuard(str(tmp_path)).problem() == told


def test_slurms_signal_between_two_attempts_is_no_stop(tmp_path: Path) -> None:
    """The time limit comes while it waits to start again: the next job goes on."""
    run = tmp_path / "runs" / "r"
    told = (
        "slurm.why_signalled = lambda *_: Outcome('failed', 'its time is over', 'time limit')\n"
        "slurm.start = lambda job: Launched('slurm', None, '7')"
    )
    own = supervise(run, "echo up; exit 3", more=told, launcher="slurm", max_restarts=3)
    wait_until(lambda: state_of(run).get("restarts"))
    time.sleep(0.3)
    own.send_signal(signal.SIGTERM)
    own.communicate(timeout=30)
    state = state_of(run)
    assert (state["state"], state["restarts"]) == ("queued", 2) and state["token"] != "t"
    assert [one["cause"] for one in state["attempts"]] == ["exit code", "time limit"]


def test_a_kill_in_the_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    """Half of a checkpoint is none to go on from: the trainer would refuse."""
    run = tmp_path / "runs" / "r"
    script = (
        "mkdir -p ../checkpoints; echo half > ../checkpoints/last.ckpt.1234abcd.tmp; kill -9 $$"
    )
    own = supervise(
        run,
        script,
        more="supervisor.RESTART_S = 0.1",
        max_restarts=1,
        finish="summary",
        resume_argv=["sh", "-c", "echo resumed"],
    )
    own.communicate(timeout=30)
    assert [one["cause"] for one in state_of(run)["attempts"]] == ["killed"]
    assert "resumed" not in (run / "train.log").read_text()


def test_a_disk_that_is_away_costs_nobody_the_place_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    answers = iter([OSError(28, "No space left on device"), None])

    def try_turn(self: Waiting) -> str | None:
        answer = next(answers)
        if answer:
            raise answer
        return None

    monkeypatch.setattr(Waiting, "_try_turn", try_turn)
    monkeypatch.setattr("remote.agent.runs.queue.POLL_S", 0.01)
    place = str(tmp_path / "runs" / "r")
    waiting = Waiting(place, threading.Event(), told.append, lambda uuids, indices: None)
    assert waiting.wait(0) and told == ["waits for the server's disk: No space left on device"]


def test_a_record_that_can_not_be_read_once_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever waits in the queue never sees that run again, and takes its GPUs."""
    run = tmp_path / "runs" / "r"
    own = supervise(run, SAVES)
    wait_until(lambda: state_of(run)["state"] == "running")
    live = LiveRuns(Layout(str(tmp_path)))
    with monkeypatch.context() as patched:
        patched.setattr(records, "read_json", lambda path: None)
        assert live.look() == []
    assert [known.run for known in live.look()] == ["r"]
    own.send_signal(signal.SIGTERM)
    own.communicate(timeout=30)
