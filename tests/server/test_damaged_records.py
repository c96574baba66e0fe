"""Records of a run that can't be read on the server, or a run that was removed there by hand: what
is said is true, and there is a way on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from remote.agent.shared.states import FINAL
from remote.loopback import LoopbackServer
from tests.support.faults import Done, Lab, wait_until

WAITS = "echo up; while [ ! -e ../go ]; do sleep 0.1; done; echo made > made\n"


@pytest.fixture
def lab(server: LoopbackServer, tmp_path: Path) -> Lab:
    return Lab(server, tmp_path, files={"train.sh": WAITS}, settings={"results": ""})


def train(lab: Lab, ends: bool = True, **options: Any) -> str:
    known = {str(row["run"]) for row in lab.rows()}
    assert lab.task("train", **options).code == 0
    (run,) = {str(row["run"]) for row in lab.rows()} - known
    if ends:
        (lab.root / "runs" / run / "go").touch()
        wait_until(lambda: state_of(lab, run) in FINAL)
    return run


def state_of(lab: Lab, run: str) -> str:
    return next(str(row["state"]) for row in lab.rows() if row["run"] == run)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", bytes(range(256))])
def test_a_record_that_can_not_be_read_replaces_none_that_can(lab: Lab, damage: bytes) -> None:
    run = train(lab, name="mine")
    assert lab.task("fetch_results").code == 0
    here = {name: (lab.results / run / name).read_bytes() for name in ("run.json", "state.json")}
    for name in here:
        (lab.root / "runs" / run / name).write_bytes(damage)
    done = lab.task("fetch_results", run=run)
    assert done.code == 0 and "run.json: it can't be read on the server" in done.err, done
    assert {name: (lab.results / run / name).read_bytes() for name in here} == here
    assert run in lab.task("clean").err, "what is not here as it is there stays"


def test_a_state_that_can_not_be_read_has_a_way_out(lab: Lab) -> None:
    other, run = train(lab), train(lab)
    assert lab.task("fetch_results", run="all").code == 0
    lab.state_file(run).write_text("{")
    for name, option in (("stop", "run"), ("wait", "run"), ("train", "resume")):
        options: dict[str, Any] = {option: run}
        done = lab.task(name, **options)
        assert done.code == 10 and "its state.json can't be read" in done.err, done
        assert f"clean --run {run}" in done.error_lines[0], done
    assert lab.task("clean", run=[run], yes=True).code == 0
    assert [path.name for path in (lab.root / "runs").glob("2*")] == [other]


def test_a_run_that_goes_on_is_not_removed_whatever_its_record_says(lab: Lab) -> None:
    run = train(lab, ends=False)
    wait_until(lambda: state_of(lab, run) == "running")
    kept = lab.state_file(run).read_text()
    lab.state_file(run).write_text("[]")
    done = lab.task("clean", run=[run], yes=True)
    assert "it has not ended" in done.err and lab.state_file(run).exists(), done
    lab.state_file(run).write_text(kept)
    assert lab.task("stop").code == 0


def test_who_waits_for_a_run_hears_that_it_was_removed(lab: Lab) -> None:
    run = train(lab, ends=False)
    wait_until(lambda: state_of(lab, run) == "running")
    directory = lab.root / "runs" / run
    done: list[Done] = []
    waiting = threading.Thread(target=lambda: done.append(lab.task("wait", run=run)))
    waiting.start()
    time.sleep(1)
    os.kill(json.loads(lab.state_file(run).read_text())["supervisor_pid"], signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)
    waiting.join(30)
    assert done and done[0].code == 11, done


def test_stop_takes_the_newest_that_has_not_ended(lab: Lab) -> None:
    first, second, third = (train(lab, ends=False, name="dup") for _ in range(3))
    wait_until(lambda: {row["state"] for row in lab.rows()} == {"running"})
    told = lab.task("stop", run="dup")
    assert told.code == 0 and state_of(lab, third) == "stopped", told
    assert second in told.err and first in told.err, "those that go on"
    assert lab.task("stop").code == 0 and state_of(lab, second) == "stopped"
    assert "has ended already" in lab.task("stop", run=third).out
    last = lab.task("stop", run="dup")
    assert state_of(lab, first) == "stopped" and "go on" not in last.err, last
    assert "has ended already" in lab.task("stop").out
