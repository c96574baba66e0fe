"""The agent over a real sshd: runs, and how they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from remote.agent.machine.processes import start_time
from remote.errors import NotFound, ServerUnfit
from remote.loopback import LoopbackServer
from tests.support.agent import OWNER, ROOT, agent, follow, put, root_of, start
from tests.support.project import make_tree
from tests.support.sshd import USUAL, MakeServer, sparse_path

STARTS_AND_COMPLAINS = """#!/bin/sh
while [ "$1" != -c ]; do shift; done
directory=$2; shift 2
setsid "$@" </dev/null >/dev/null 2>&1 &
until grep -q running "$directory/state.json"; do sleep 0.1; done
echo "duplicate session: r1"; exit 1
"""


def test_a_run_to_its_end(server: LoopbackServer, tmp_path: Path) -> None:
    project = make_tree(tmp_path / "p", {"say.sh": "pwd; echo $REMOTE_RUN_DIR; exit 0"})
    with agent(server) as link:
        release = put(link, project)
        started = start(link, "r1", release, "sh", "say.sh")
        described, log = follow(link, "r1")
        again = start(link, "r1", release, "sh", "say.sh")
    directory = root_of(server) / "runs" / "r1"
    how = "tmux" if shutil.which("tmux") else "setsid"
    assert started["launched"] == how and again["launched"] == how
    assert (described["state"], described["detail"]["exit_code"]) == ("finished", 0)
    assert log.decode().split() == [str(directory / "work"), str(directory)]
    for key in ("host", "boot_id", "pid", "pid_started", "started", "ended"):
        assert described["detail"][key] is not None, key
    assert "gpu.csv" not in os.listdir(directory)


def test_without_tmux_setsid_does_and_says_so(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server(path=sparse_path(tmp_path / "bin", USUAL, without=["tmux"]))
    with agent(server) as link:
        release = put(link, make_tree(tmp_path / "p", {"a": "1"}))
        started = start(link, "r1", release, "sh", "-c", "sleep 1; echo out")
    time.sleep(0.2)
    with agent(server) as link:
        described, log = follow(link, "r1")
    assert started["launched"] == "setsid" and "no tmux" in started["note"]
    assert described["state"] == "finished" and log == b"out\n"


def test_a_run_that_has_begun_is_not_taken_back(make_server: MakeServer, tmp_path: Path) -> None:
    """tmux complains: of an earlier call's session, or it was slow to answer. What the launcher
    refuses is removed else."""
    server = make_server(path=sparse_path(tmp_path / "bin", USUAL, without=["tmux"]))
    tmux = tmp_path / "bin" / "tmux"
    tmux.write_text(STARTS_AND_COMPLAINS)
    tmux.chmod(0o755)
    with agent(server) as link:
        release = put(link, make_tree(tmp_path / "p", {"a": "1"}))
        start(link, "r1", release, "sh", "-c", "sleep 1; echo out", launcher="tmux")
        described, log = follow(link, "r1")
        assert described["state"] == "finished" and log == b"out\n"
        tmux.write_text("#!/bin/sh\necho no terminal; exit 1\n")
        with pytest.raises(ServerUnfit, match=r"tmux did not start \(no terminal\)"):
            start(link, "r2", release, "true", launcher="tmux")
    assert sorted(os.listdir(root_of(server) / "runs"))[-1:] == ["r1"]


def test_a_failure_tells_exit_code_and_last_error(server: LoopbackServer, tmp_path: Path) -> None:
    with agent(server) as link:
        release = put(link, make_tree(tmp_path / "p", {"a": "1"}))
        start(link, "r1", release, "sh", "-c", "echo 'ValueError: no such thing'; echo bye; exit 3")
        described, _ = follow(link, "r1")
        start(link, "r2", release, "no-such-command")
        missing, _ = follow(link, "r2")
    assert (
        described["state"] == "failed"
        and described["reason"] == "exit code 3: ValueError: no such thing"
    )
    assert missing["state"] == "failed" and "could not be started" in missing["reason"]


def test_a_trainer_that_ends_well_without_a_summary_has_failed(
    server: LoopbackServer, tmp_path: Path
) -> None:
    with agent(server) as link:
        release = put(link, make_tree(tmp_path / "p", {"a": "1"}))
        start(link, "r1", release, "true", finish="summary")
        described, _ = follow(link, "r1")
        start(
            link,
            "r2",
            release,
            "sh",
            "-c",
            "echo '{}' > $REMOTE_RUN_DIR/summary.json",
            finish="summary",
        )
        summed, _ = follow(link, "r2")
    assert (described["state"], described["detail"]["cause"]) == ("failed", "no summary")
    assert summed["state"] == "finished"


def test_stop_lets_it_save_and_ends_what_it_left(server: LoopbackServer, tmp_path: Path) -> None:
    script = (
        "trap 'echo saved > saved; exit 0' TERM; sleep 300 & echo $! > child; while :; do sleep"
        " 0.1; done"
    )
    with agent(server) as link:
        release = put(link, make_tree(tmp_path / "p", {"a": "1"}))
        start(link, "r1", release, "sh", "-c", f"echo up; {script}")
        follow(link, "r1", until="started")
        assert link.call("run_stop", root=ROOT, **OWNER, run="r1", who="me@laptop")["asked"] is True
        described, _ = follow(link, "r1")
        assert (
            link.call("run_stop", root=ROOT, **OWNER, run="r1", who="me@laptop")["asked"] is False
        )
    work = root_of(server) / "runs" / "r1" / "work"
    assert (work / "saved").exists()
    assert (described["state"], described["reason"]) == ("stopped", "stopped by me@laptop")
    assert start_time(int((work / "child").read_text())) is None


def test_what_does_not_stop_is_killed(server: LoopbackServer, tmp_path: Path) -> None:
    with agent(server) as link:
        release = put(link, make_tree(tmp_path / "p", {"a": "1"}))
        start(
            link,
            "r1",
            release,
            "sh",
            "-c",
            "trap '' TERM; echo up; while :; do sleep 0.1; done",
            stop_s=1,
        )
        follow(link, "r1", until="started")
        time.sleep(0.3)
        link.call("run_stop", root=ROOT, **OWNER, run="r1", who="me")
        described, _ = follow(link, "r1")
    assert described["state"] == "stopped" and described["detail"]["exit_code"] == -signal.SIGKILL


def state_of(server: LoopbackServer, run: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        (root_of(server) / "runs" / run / "state.json").read_text()
    )
    return found


def test_killed_from_outside_is_told_apart(server: LoopbackServer, tmp_path: Path) -> None:
    with agent(server) as link:
        release = put(link, make_tree(tmp_path / "p", {"a": "1"}))
        for run in ("trainer", "both"):
            start(link, run, release, "sh", "-c", "echo up; sleep 60")
            follow(link, run, until="started")
        os.kill(int(str(state_of(server, "trainer")["pid"])), signal.SIGKILL)
        killed, _ = follow(link, "trainer")
        state = state_of(server, "both")
        os.kill(int(str(state["supervisor_pid"])), signal.SIGKILL)
        time.sleep(0.2)
        alone = link.call("runs", root=ROOT, run="both")["runs"][0]
        os.killpg(int(str(state["pid"])), signal.SIGKILL)
        time.sleep(0.2)
        gone = link.call("runs", root=ROOT, run="both")["runs"][0]
    assert killed["reason"] == "killed from outside (SIGKILL)"
    assert alone["state"] == "running" and alone["detail"]["unsupervised"] is True
    assert (gone["state"], gone["detail"]["cause"]) == ("failed", "killed")


@pytest.mark.parametrize(
    ("change", "state", "cause"),
    [
        ({"boot_id": "other"}, "failed", "rebooted"),
        ({"pid_started": 1, "supervisor_started": 1}, "failed", "pid reused"),
        ({"host": "far"}, "running", None),
    ],
)
def test_what_a_record_of_running_means(
    server: LoopbackServer, tmp_path: Path, change: dict[str, object], state: str, cause: str | None
) -> None:
    with agent(server) as link:
        release = put(link, make_tree(tmp_path / "p", {"a": "1"}))
        start(link, "r1", release, "sh", "-c", "echo up; sleep 30")
        follow(link, "r1", until="started")
        place = root_of(server) / "runs" / "r1" / "state.json"
        place.write_text(json.dumps(state_of(server, "r1") | change))
        told = link.call("runs", root=ROOT, run="r1")["runs"][0]
    assert (told["state"], told["detail"].get("cause")) == (state, cause)


def test_a_deploy_leaves_a_running_trainings_code_alone(
    server: LoopbackServer, tmp_path: Path
) -> None:
    project = make_tree(
        tmp_path / "p",
        {"code": "old", "run.sh": "echo up; while [ ! -e go ]; do sleep 0.1; done; cat code"},
    )
    with agent(server) as link:
        release = put(link, project)
        start(link, "r1", release, "sh", "run.sh")
        follow(link, "r1", until="started")
        (project / "code").write_text("new")
        assert put(link, project).tree != release.tree
        (root_of(server) / "runs" / "r1" / "work" / "go").touch()
        _, log = follow(link, "r1")
    assert log == b"up\nold"


def test_runs_are_found_by_id_beginning_and_name(server: LoopbackServer, tmp_path: Path) -> None:
    with agent(server) as link:
        with pytest.raises(NotFound, match="no run of this project"):
            link.call("runs", root=ROOT, run="latest")
        release = put(link, make_tree(tmp_path / "p", {"a": "1"}))
        for run, name in (("2026-a", "first"), ("2026-b", None)):
            start(link, run, release, "true", name=name)
            follow(link, run)

        def found(text: str) -> str:
            return str(link.call("runs", root=ROOT, run=text)["runs"][0]["run"])

        assert [found("latest"), found("2026-a"), found("first")] == ["2026-b", "2026-a", "2026-a"]
        for wrong in ("2026", "none", "../x"):
            with pytest.raises(NotFound):
                found(wrong)
