"""The agent over a real sshd: releases, roots, and the python that it finds there."""

from __future__ import annotations

import os
import platform
import threading
from pathlib import Path
from typing import Any

import pytest

from remote.errors import ServerUnfit, TransferFailed
from remote.loopback import LoopbackServer
from remote.release.release import build_release
from tests.support.agent import OWNER, ROOT, agent, facts, frames_of, put, root_of
from tests.support.project import HOSTILE, make_tree, snapshot
from tests.support.sshd import USUAL, MakeServer, base_python, sparse_path


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
    with agent(server) as link:
        with pytest.raises(TransferFailed, match="changed while"):
            link.call(
                "release_put",
                None,
                frames_of(project, release),
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

    def slow_frames(ready: dict[str, Any]) -> Any:
        holding.set()
        done.wait(10)
        return frames_of(project, release)(ready)

    def first() -> None:
        with agent(server) as link:
            link.call(
                "release_put",
                None,
                slow_frames,
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
