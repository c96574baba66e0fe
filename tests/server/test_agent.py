"""The agent over a real sshd: releases, runs and their ends."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from remote.agent.machine.processes import start_time
from remote.errors import NotFound, ServerUnfit, TransferFailed
from remote.loopback import LoopbackServer
from remote.release.release import build_release, upload_frames
from tests.support.agent import OWNER, ROOT, agent, facts, follow, put, start
from tests.support.project import HOSTILE, make_tree, snapshot
from tests.support.sshd import USUAL, MakeServer, base_python, sparse_path


def root_of(server: LoopbackServer) -> Path:
    return server.home / "projects" / "p"


def test_hostile_names_arrive_byte_for_byte(server: LoopbackServer, tmp_path: Path) -> None:
    project = make_tree(tmp_path / "p", HOSTILE)
    with agent(server) as link:
        release = put(link, project)
    assert snapshot(root_of(server) / "releases" / release.tree) == snapshot(project)
    assert os.readlink(root_of(server) / "current") == f"releases/{release.tree}"


def test_only_what_is_missing_is_sent(server: LoopbackServer, tmp_path: Path) -> None:
    project = make_tree(tmp_path / "p", {"a": "1", "big": os.urandom(1 << 20)})
    with agent(server) as link:
        put(link, project)
        (project / "a").write_text("changed")
        release = build_release(project, 50)
        missing = facts(link, release)["missing"]
    assert missing == [next(entry.sha256 for entry in release.entries if entry.path == "a")]


def test_releases_share_what_nobody_touched(server: LoopbackServer, tmp_path: Path) -> None:
    """One file under two names; what somebody edited in a release is read again, and never becomes
    part of another one."""
    project = make_tree(tmp_path / "project", {"same.py": "a = 1\n", "other.py": "b = 1\n"})
    releases = root_of(server) / "releases"
    with agent(server) as link:
        first = put(link, project)
        (project / "other.py").write_text("b = 2\n")
        second = put(link, project)
        assert (releases / first.tree / "same.py").stat().st_ino == (
            releases / second.tree / "same.py"
        ).stat().st_ino
        assert (releases / first.tree / "other.py").read_text() == "b = 1\n"
        (releases / second.tree / "same.py").write_text("a = 9\n")
        (project / "other.py").write_text("b = 3\n")
        with pytest.raises(TransferFailed, match=r"same.py on the server is not what was sent"):
            put(link, project)
        for tree in (first.tree, second.tree):
            (releases / tree / "same.py").unlink()
        third = put(link, project)
        assert (releases / third.tree / "same.py").read_text() == "a = 1\n"
        (project / "same.py").chmod(0o755)
        fourth = put(link, project)
        assert (releases / fourth.tree / "same.py").stat().st_mode & 0o777 == 0o755
        assert (releases / third.tree / "same.py").stat().st_mode & 0o777 == 0o644


def test_the_root_is_private_and_knows_its_project(server: LoopbackServer, tmp_path: Path) -> None:
    project = make_tree(tmp_path / "p", {"a": "1"})
    with agent(server) as link:
        put(link, project)
        other = facts(link, project="other")
        with pytest.raises(ServerUnfit, match="belongs to the project 'p'"):
            link.call(
                "release_use", root=ROOT, project="other", identity=None, tree="0" * 40, who="x"
            )
    assert root_of(server).stat().st_mode & 0o777 == 0o700
    assert "belongs to the project" in other["root"]["problem"]["message"]


@pytest.mark.parametrize("kind", ["file", "foreign", "below a file"])
def test_a_root_that_is_not_ours_is_refused_before_anything_is_written(
    server: LoopbackServer, tmp_path: Path, kind: str
) -> None:
    root = root_of(server)
    if kind == "file":
        make_tree(server.home, {"projects/p": "x"})
    elif kind == "foreign":
        make_tree(server.home, {"projects/p/thesis.tex": "x"})
    else:
        make_tree(server.home, {"projects": "x"})
    before = snapshot(server.home)
    with agent(server) as link, pytest.raises(ServerUnfit):
        put(link, make_tree(tmp_path / "p", {"a": "1"}))
    assert snapshot(server.home) == before
    assert kind != "file" or root.is_file()


def test_reading_leaves_no_trace(server: LoopbackServer) -> None:
    with agent(server) as link:
        assert link.call("runs", root=ROOT)["runs"] == []
        assert facts(link)["root"]["problem"] is None
    assert not (server.home / "projects").exists()


def test_contents_that_changed_on_their_way_are_refused(
    server: LoopbackServer, tmp_path: Path
) -> None:
    project = make_tree(tmp_path / "p", {"a": "one"})
    release = build_release(project, 50)
    (project / "a").write_text("two")
    frames = upload_frames(
        project, release.entries, frozenset(entry.sha256 for entry in release.entries)
    )
    with agent(server) as link:
        with pytest.raises(TransferFailed, match="changed while"):
            link.call(
                "release_put",
                None,
                frames,
                root=ROOT,
                tree=release.tree,
                manifest=release.entries,
                origin="",
                who="x",
                **OWNER,
            )
        assert facts(link, release)["release_exists"] is False
    assert not (root_of(server) / "current").exists()


def test_a_second_deploy_waits_for_the_first_and_takes_over(
    server: LoopbackServer, tmp_path: Path
) -> None:
    project = make_tree(tmp_path / "p", {"a": "1"})
    release = build_release(project, 50)
    waiting: list[dict[str, object]] = []
    holding, done = threading.Event(), threading.Event()

    def slow_frames() -> Any:
        holding.set()
        done.wait(10)
        yield from upload_frames(
            project, release.entries, frozenset(entry.sha256 for entry in release.entries)
        )

    def first() -> None:
        with agent(server) as link:
            link.call(
                "release_put",
                None,
                slow_frames(),
                root=ROOT,
                tree=release.tree,
                manifest=release.entries,
                origin="",
                who="anna",
                **OWNER,
            )

    def note(event: dict[str, object], blob: bytes) -> None:
        if "waiting" in event:
            waiting.append(event)
            done.set()

    thread = threading.Thread(target=first)
    thread.start()
    holding.wait(10)
    with agent(server) as link:
        link.call("release_use", note, root=ROOT, tree=release.tree, who="bert", **OWNER)
    thread.join()
    assert waiting[0]["waiting"]["who"] == "anna"  # type: ignore[index]


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


STARTS_AND_COMPLAINS = """#!/bin/sh
while [ "$1" != -c ]; do shift; done
directory=$2; shift 2
setsid "$@" </dev/null >/dev/null 2>&1 &
until grep -q running "$directory/state.json"; do sleep 0.1; done
echo "duplicate session: r1"; exit 1
"""


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


def test_a_noisy_login_shell_does_no_harm(make_server: MakeServer, tmp_path: Path) -> None:
    shell = tmp_path / "noisy"
    shell.write_text('#!/bin/sh\necho "Welcome to the GPU farm"\nexec /bin/sh "$@"\n')
    shell.chmod(0o755)
    server = make_server(shell=str(shell), embedded=True)
    with agent(server) as link:
        assert facts(link)["system"]["system"] == "Linux"


def test_no_python_is_one_clear_line(make_server: MakeServer, tmp_path: Path) -> None:
    path = sparse_path(tmp_path / "bin", USUAL, without=["python3"])
    server = make_server(path=path)
    make_tree(server.home, {".profile": f"PATH={path}\n"})
    with agent(server) as link:
        try:
            facts(link)
        except ServerUnfit as error:
            assert "no python3" in str(error) and "remote.python" in str(error)
        else:  # this machine has one in a place that is always looked at
            assert facts(link)["system"]["python_path"].startswith(("/opt", "/usr/local", "/root"))


@pytest.mark.parametrize(
    "place", [".pyenv/versions/3.11.7", ".conda/envs/own", "micromamba/envs/own", "by-login"]
)
def test_a_python_that_no_plain_command_finds_serves(
    make_server: MakeServer, tmp_path: Path, place: str
) -> None:
    path = sparse_path(tmp_path / "bin", USUAL, without=["python3"])
    server = make_server(path=path)
    folder = server.home / place / "bin"
    make_tree(server.home, {".profile": f"echo welcome; PATH={path}:{server.home}/by-login/bin\n"})
    folder.mkdir(parents=True)
    (folder / "python3").symlink_to(base_python())
    with agent(server) as link:
        assert facts(link)["system"]["python"] == platform.python_version()


def test_an_old_python_is_passed_over(make_server: MakeServer, tmp_path: Path) -> None:
    directory = tmp_path / "bin"
    path = sparse_path(directory, USUAL, without=["python3"])
    (directory / "python3").write_text("#!/bin/sh\nexit 96\n")
    (directory / "python3").chmod(0o755)
    (directory / "python3.11").symlink_to(os.path.realpath("/proc/self/exe"))
    with agent(make_server(path=path)) as link:
        assert facts(link)["system"]["python_path"].endswith("python3.11")


def test_a_program_that_fails_is_told_by_its_words(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as a lost connection, after which people would try again for ever."""
    monkeypatch.setattr("remote.link.link.agent_program", lambda: b"another one")
    with agent(server) as link, pytest.raises(ServerUnfit, match="did not arrive as it was sent"):
        facts(link)
