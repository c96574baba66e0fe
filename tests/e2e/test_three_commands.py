"""The fab command as a user types it, twice, against a real sshd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer, Route
from tests.support.project import make_project, make_tree, snapshot
from tests.support.proxy import Relay

FAB = [sys.executable, "-m", "fabric"]
OWN = {"requirements": "none", "command": "sh train.sh", "results": "out", "project": "p"}


def fab(
    project: Path,
    server: LoopbackServer | Route,
    *words: str,
    code: int = 0,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a task; the exit code must be `code`."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("FABRIC_", "SSH_"))
    } | dict(env or {})
    done = subprocess.run(
        [*FAB, "-S", str(server.ssh_config), "-H", "loopback", *words],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def project(tmp_path: Path) -> Path:
    script = "mkdir -p out; echo epoch 1; echo 0.5 > out/accuracy; sleep 0.5; echo epoch 2"
    return make_project(
        tmp_path / "project", {"train.sh": script}, settings=OWN, parts=("fabfile.py", "remote")
    )


def test_the_three_commands_twice(project: Path, server: LoopbackServer) -> None:
    first = fab(project, server, "deploy")
    assert "first release" in first.stdout and "next: fab -H loopback -S" in first.stdout
    again = fab(project, server, "deploy")
    assert "code kept: nothing changed" in again.stdout and "environment kept" in again.stdout
    trained = fab(project, server, "train", "--follow")
    assert "epoch 2" in trained.stdout and "finished" in trained.stdout
    fetched = fab(project, server, "fetch-results")
    run = next(path for path in (project / "results").iterdir() if not path.name.startswith("."))
    assert (run / "train.log").read_text() == "epoch 1\nepoch 2\n"
    assert (run / "work/out/accuracy").read_text() == "0.5\n"
    assert snapshot(run / "source")["train.sh"] == snapshot(project)["train.sh"]
    assert str(run) in fetched.stdout
    assert "nothing new to fetch" in fab(project, server, "fetch-results").stdout


def test_a_deploy_that_changes_nothing_is_at_most_three_requests(
    project: Path, server: LoopbackServer
) -> None:
    fab(project, server, "deploy")
    told = json.loads(fab(project, server, "deploy", "--json").stdout)
    assert told[0]["changed"] is False
    assert told[0]["requests"] <= 3


def test_status_where_nothing_was_ever_deployed(project: Path, server: LoopbackServer) -> None:
    assert "no runs yet" in fab(project, server, "status").stdout
    assert json.loads(fab(project, server, "status", "--json").stdout) == []
    assert not (server.home / "projects").exists()


def test_status_and_logs_of_a_run(project: Path, server: LoopbackServer) -> None:
    fab(project, server, "train", "--no-follow", "--name", "mine")
    assert "epoch 2" in fab(project, server, "logs", "--run", "mine", "--follow").stdout
    row = json.loads(fab(project, server, "status", "--json").stdout)[0]
    assert (row["state"], row["name"], row["host"], row["exit_code"]) == (
        "finished",
        "mine",
        "loopback",
        0,
    )
    assert set(row) >= {"run", "state", "epoch", "host"}
    told = json.loads(fab(project, server, "logs", "--json").stdout)
    assert told["log"] == ["epoch 1", "epoch 2"] and told["run"] == row["run"]


def test_a_failure_shows_the_logs_end_and_its_exit_code(
    project: Path, server: LoopbackServer
) -> None:
    (project / "train.sh").write_text("echo 'ValueError: bad data'; exit 3\n")
    done = fab(project, server, "train", "--no-follow", code=10)
    assert "ValueError: bad data" in done.stdout and "exit code 3" in done.stderr


def test_stop(project: Path, server: LoopbackServer) -> None:
    (project / "train.sh").write_text("echo up; exec sleep 300\n")
    fab(project, server, "train", "--no-follow")
    assert "stopped" in fab(project, server, "stop").stdout
    assert json.loads(fab(project, server, "status", "--json").stdout)[0]["state"] == "stopped"


@pytest.mark.parametrize(
    "task", ["deploy", "train", "fetch-results", "status", "logs", "stop", "check-gpu"]
)
def test_without_a_host_every_task_refuses_in_one_line(project: Path, task: str) -> None:
    done = subprocess.run([*FAB, task], cwd=project, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == f"error: {task} needs a server — fab -H user@host[:port] {task}"


def test_wrong_words_are_refused_before_anything_is_sent(project: Path, tmp_path: Path) -> None:
    route = Route(
        "127.0.0.1", 1, "nobody", tmp_path / "no-key", tmp_path / "none", tmp_path / "config"
    )
    route.ssh_config.write_text("Host loopback\n  HostName 127.0.0.1\n  Port 1\n")
    done = fab(project, route, "train", "--devices", "0;reboot", "--name", "../x", code=2)
    assert (
        "--devices" in done.stderr
        and "--name" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
    assert (
        "unknown key remote.rooot"
        in fab(write_settings(project, {"rooot": "x"}), route, "status", code=2).stderr
    )


def write_settings(project: Path, settings: Mapping[str, object]) -> Path:
    make_tree(project, {"fabric.yaml": json.dumps({"load_ssh_configs": False, "remote": settings})})
    return project


def test_a_server_that_is_down_is_shown_beside_the_others(
    project: Path, server: LoopbackServer
) -> None:
    config = server.ssh_config.read_text() + "\nHost down\n  HostName 127.0.0.1\n  Port 1\n"
    server.ssh_config.write_text(config)
    done = subprocess.run(
        [*FAB, "-S", str(server.ssh_config), "-H", "loopback,down", "status", "--json"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    assert [(row["host"], row["state"]) for row in json.loads(done.stdout)] == [
        ("down", "unreachable")
    ]


def test_the_environment_overrides_settings(project: Path, server: LoopbackServer) -> None:
    fab(project, server, "deploy", env={"FABRIC_REMOTE_ROOT": "~/elsewhere"})
    assert (server.home / "elsewhere" / "project.json").exists()


def test_a_cut_between_and_during(project: Path, server: LoopbackServer) -> None:
    """The run outlives the laptop's link; an interrupted fetch goes on and ends in the very state
    of an uncut one."""
    (project / "train.sh").write_text(
        "mkdir -p out; echo up; head -c 30000000 /dev/urandom > out/weights; sleep 1; echo done\n"
    )
    with Relay(server.host, server.port) as relay:
        route = server.via(relay.port)
        fab(project, route, "deploy")
        process = subprocess.Popen(
            [*FAB, "-S", str(route.ssh_config), "-H", "loopback", "train", "--no-follow"],
            cwd=project,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        relay.cut()
        wait_for(
            lambda: (
                json.loads(fab(project, server, "status", "--json").stdout)[0]["state"]
                == "finished"
            )
        )
        # A reset throws away what lies unread in the system's buffers, several MB on a busy
        # machine.
        relay.cut_after(20_000_000, "down")
        lost = fab(project, route, "fetch-results", code=4)
        assert "lost" in lost.stderr and len(lost.stderr.strip().splitlines()) == 1
        run = next(
            path for path in (project / "results").iterdir() if not path.name.startswith(".")
        )
        (part,) = (run / ".fetch").iterdir()
        assert not (run / "work/out/weights").exists() and part.stat().st_size > 5_000_000
        relay.mend()
        told = json.loads(fab(project, route, "fetch-results", "--json").stdout)[0]
        assert told["received"] < 25_000_000
    there = server.home / "projects" / "p" / "runs" / run.name
    assert (run / "work/out/weights").read_bytes() == (there / "work/out/weights").read_bytes()
    assert not (run / ".fetch").exists()


def wait_for(condition, timeout_s: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.3)


def test_fab_starts_quickly_and_without_torch(project: Path) -> None:
    code = "import sys; sys.argv = ['fab', '--list']\nfrom fabric.main import program\n"
    code += "try:\n    program.run()\nexcept SystemExit:\n    pass\n"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code + "print([m for m in ('torch', 'numpy', 'rich', 'matplotlib') if m in"
            " sys.modules])",
        ],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "fetch-results" in done.stdout and done.stdout.rstrip().endswith("[]"), (
        done.stdout + done.stderr
    )
