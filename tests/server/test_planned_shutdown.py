"""--shutdown-after: the server goes down after its last run, never under anybody; `keep` cancels
it. What would shut it down is a `touch` here."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remote.agent.machine.processes import start_time
from remote.agent.root.paths import Layout
from remote.agent.runs import planned_shutdown
from tests.support.agent import agent
from tests.support.faults import Lab, wait_until
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.sshd import USUAL, MakeServer, sparse_path

QUICK = {
    "REMOTE_SHUTDOWN_LOOK_S": "0.2",
    "REMOTE_SHUTDOWN_GOING_S": "2",
    "REMOTE_FIRST_PERSON": "65534",  # who else is at work on the tests' own machine does not count
}
WAITS = "echo up; while [ ! -e ../go ]; do sleep 0.1; done\n"


class Rented(Lab):
    @property
    def mark(self) -> Path:
        return self.directory / "is-down"

    @property
    def run(self) -> Path:
        (run,) = (self.root / "runs").glob("2*")
        return run

    @property
    def plan(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / "shutdown.json").read_text())
        return found

    def end(self) -> None:
        """Without a look by `status`, which would start a guard again."""
        (self.run / "go").touch()
        wait_until(lambda: '"finished"' in self.state_file(self.run.name).read_text())

    def stays(self, seconds: float = 1.5) -> bool:
        """Whether it is still up after so long."""
        time.sleep(seconds)
        return not self.mark.exists()


def rent(make_server: MakeServer, directory: Path, **settings: Any) -> Rented:
    directory.mkdir(exist_ok=True)
    path = sparse_path(directory / "bin", USUAL)
    lab = Rented(make_server(env=QUICK, path=path), directory, files={"train.sh": WAITS})
    lab.settings = {"shutdown": f"touch {shlex.quote(str(lab.mark))}", **settings}
    return lab


@pytest.fixture
def lab(make_server: MakeServer, tmp_path: Path) -> Rented:
    return rent(make_server, tmp_path)


def test_it_goes_down_after_the_last_run_was_fetched(lab: Rented) -> None:
    started = lab.task("train", shutdown_after="2s", keep_unfetched="2h")
    assert "is shut down 2 s after its last run has ended, 2 h where one is not" in started.err
    assert started.err.endswith(" keep\n") and "  fab -H loopback " in started.err
    assert "2 s after its last run" in lab.task("status").err, "while it trains nothing counts down"
    assert lab.rows()[0]["shutdown_s"] is None and lab.stays()
    lab.end()
    told = lab.task("status").err
    assert "is shut down in 1 h 59 min (" in told and f"{lab.run.name} was not fetched)" in told
    assert lab.stays(3) and 7100 < lab.rows()[0]["shutdown_s"] < 7200
    assert lab.task("fetch_results").code == 0
    wait_until(lab.mark.exists)
    # It is there all the same: that is told, and tried again.
    wait_until(lambda: "the server is still there" in str(lab.plan.get("problem")))
    lab.mark.unlink()
    assert "could not be shut down (the command was accepted, but" in lab.task("status").err
    wait_until(lab.mark.exists)
    assert "none was planned" not in lab.task("keep").out


def test_keep_cancels_it_and_a_later_launch_changes_it(lab: Rented) -> None:
    lab.task("train", shutdown_after="5m", keep_unfetched="5m")
    first = lab.plan["pid"]
    lab.end()
    (lab.run / "go").unlink()
    (lab.project / "train.sh").write_text("echo two\n")
    lab.task("train", shutdown_after=True)
    wait_until(lambda: start_time(first) is None)
    assert lab.plan["grace_s"] == 1800 and lab.plan["unfetched_s"] == 86400
    second = lab.plan["pid"]
    done = lab.task("keep")
    assert done.code == 0 and "loopback is not shut down; the plan was:" in done.out
    assert "in 23 h 59 min" in done.out
    wait_until(lambda: start_time(second) is None)
    told = json.loads(lab.task("keep", json=True).out)
    assert told == [{"host": "loopback", "cancelled": False}]
    assert "none was planned" in lab.task("keep").out and "shut down" not in lab.task("status").err


def test_a_guard_that_was_killed_is_started_again_with_its_grace_anew(lab: Rented) -> None:
    lab.task("train", shutdown_after="2s", keep_unfetched="2s")
    os.kill(lab.plan["pid"], signal.SIGKILL)
    lab.end()
    assert lab.stays(3), "nobody waits for it any more"
    told = lab.rows()[0]["shutdown_s"]
    assert 0 < told <= 2
    wait_until(lab.mark.exists)


def test_what_fails_is_told_and_tried_again(make_server: MakeServer, tmp_path: Path) -> None:
    script = f"test -e {tmp_path}/may || {{ echo not allowed; exit 3; }}; touch {tmp_path}/is-down"
    lab = rent(make_server, tmp_path, shutdown=script)
    lab.task("train", shutdown_after="1s", keep_unfetched="1s")
    lab.end()
    wait_until(lambda: "failed (exit code 3): not allowed" in str(lab.plan.get("problem")))
    assert "could not be shut down (" in lab.task("status").err and lab.stays(0)
    (tmp_path / "may").touch()
    wait_until(lab.mark.exists)


def test_a_full_disk_keeps_no_server_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, layout = tmp_path / "is-down", Layout(str(tmp_path))
    (tmp_path / "runs").mkdir()
    plan = {"grace_s": 0, "since": 0, "pid": os.getpid(), "command": f"touch {mark}"}
    (tmp_path / "shutdown.json").write_text(json.dumps(plan))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(planned_shutdown, "write_json", full)
    monkeypatch.setattr(planned_shutdown, "who_is_there", lambda layout, grace_s: "")
    assert planned_shutdown.Guard(layout).look() == planned_shutdown.GOING_S and mark.exists()


def test_a_run_that_was_killed_ended_when_it_last_showed_life(lab: Rented) -> None:
    lab.task("train", shutdown_after="3s", keep_unfetched="1h")
    state = json.loads((lab.run / "state.json").read_text())
    for pid in (state["supervisor_pid"], state["pid"]):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lab.rows()[0]["state"] == "failed")
    assert 3500 < lab.rows()[0]["shutdown_s"] <= 3600
    lab.task("fetch_results")
    wait_until(lab.mark.exists)


@contextlib.contextmanager
def run_elsewhere(lab: Rented) -> Iterator[None]:
    """Of another project under the same login."""
    other = Lab(lab.server, lab.directory, files=lab.files, name="q")
    assert other.task("train").code == 0
    yield
    other.task("stop")


@contextlib.contextmanager
def person(lab: Rented) -> Iterator[None]:
    with subprocess.Popen(["sleep", "100"], user=65533) as process:
        yield
        process.kill()


@contextlib.contextmanager
def terminal(lab: Rented) -> Iterator[None]:
    """Somebody's program prints there, at times that the kernel tells to 8 s."""
    leader, follower = pty.openpty()
    environment = {"HOME": str(lab.server.home), "PATH": os.environ["PATH"]}
    words = ["sh", "-c", "while :; do echo; sleep 1; done"]
    with subprocess.Popen(words, stdin=follower, stdout=follower, env=environment) as process:
        yield
        process.kill()
    os.close(follower)
    os.close(leader)


@contextlib.contextmanager
def notebook(lab: Rented) -> Iterator[None]:
    """On a GPU, started by somebody of the same login past us."""
    gpu, tool = FakeGpu(), lab.directory / "bin" / "nvidia-smi"
    with subprocess.Popen(["sleep", "100"]) as process:
        write_nvidia_smi(tool, [gpu], processes=[(gpu.uuid, process.pid, "python", 900)])
        yield
        tool.unlink()
        process.kill()


@contextlib.contextmanager
def download(lab: Rented) -> Iterator[None]:
    with agent(lab.server):
        yield


@pytest.mark.parametrize(
    ("somebody", "told"),
    [
        (run_elsewhere, "a run of "),
        (terminal, "the terminal pts/"),
        (notebook, "gpu 0: python ("),
        (download, "a command of fab that is connected"),
        (person, "processes of 65533"),
    ],
)
def test_never_under_anybody_else(
    make_server: MakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    somebody: Callable[[Rented], contextlib.AbstractContextManager[None]],
    told: str,
) -> None:
    if somebody is person:
        if os.getuid() != 0:
            pytest.skip("another user's process takes root to start")
        monkeypatch.setitem(QUICK, "REMOTE_FIRST_PERSON", "65533")
    lab = rent(make_server, tmp_path)
    grace = "10s" if somebody is terminal else "1s"  # which was used within the grace
    lab.task("train", shutdown_after=grace, keep_unfetched=grace)
    with somebody(lab):
        lab.end()
        wait_until(lambda: told in str(lab.plan.get("waiting")))
        shown = lab.task("status").err
        assert "is not shut down yet: there is " in shown and told in shown
        assert lab.stays()
    wait_until(lab.mark.exists)


def test_what_can_not_be_done_is_said_before_anything_starts(
    make_server: MakeServer, tmp_path: Path
) -> None:
    lab = rent(make_server, tmp_path, shutdown="")
    assert not (tmp_path / "bin" / "shutdown").exists() and not (tmp_path / "bin/sudo").exists()
    none = lab.task("train", shutdown_after="1h")
    assert none.code == 7 and "on the server" in none.err and "set remote.shutdown" in none.err
    assert lab.rows() == []
    alone = lab.task("train", keep_unfetched="1h")
    assert alone.code == 2 and "--keep-unfetched belongs to --shutdown-after" in alone.err
    wrong = lab.task("train", shutdown_after="soon")
    assert wrong.code == 2 and "--shutdown-after: a time is given as 8h" in wrong.err
    lab.settings = {"launcher": "slurm"}
    slurm = lab.task("train", shutdown_after="1h")
    assert slurm.code == 2 and "not yours to shut down" in slurm.err
