"""What of a project's files is not sent, and how that is said."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from remote.errors import UsageError
from remote.release.code_files import how_to_send, is_private_key
from remote.release.release import build_release, read_entry
from tests.support.project import Executable, Link, commit, make_tree, shut_folders
from tests.unit.test_release import paths

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU" * 8


def test_without_git_rubbish_stays_here(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "a.py": "1",
            "__pycache__/a.pyc": "2",
            "runs/x": "3",
            "results/y": "4",
            "data/z": "5",
            "my env/pyvenv.cfg": "6",
            "my env/lib/x.py": "7",
            "sub/data.py": "8",
        },
    )
    assert paths(tmp_path) == ["a.py", "sub/data.py"]


def test_secrets_and_large_files_are_left_out_and_named(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "a.py": "1",
            ".env": "TOKEN=1",
            "sub/.env.local": "2",
            ".env.example": "3",
            "deploy_key": KEY,
            "ca.pem": "-----BEGIN CERTIFICATE-----",
            "both.pem": "-----BEGIN CERTIFICATE-----\n" * 4 + KEY,
            "notes.md": "a key begins with " + KEY,
            "big.bin": bytes(2 << 20),
            "out": Link("/etc/passwd"),
            "up": Link("../x"),
            ".venv/pyvenv.cfg": "",
            ".venv/lib/x.py": "",
        },
    )
    commit(tmp_path, "first")
    release = build_release(tmp_path, 1)
    left = dict(release.left_out)
    assert set(left) == {".env", "sub/.env.local", "deploy_key", "both.pem", "big.bin", "out", "up"}
    assert "2 MiB" in left["big.bin"]
    assert [entry.path for entry in release.entries][:3] == [
        ".env.example",
        ".venv/lib/x.py",
        ".venv/pyvenv.cfg",
    ]
    assert "big.bin" in paths(tmp_path, include="*.bin, deploy_key")


def test_an_untracked_virtual_environment_stays_here(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a.py": "1"})
    commit(tmp_path, "first")
    make_tree(tmp_path, {"venv/pyvenv.cfg": "", "venv/lib/x.py": ""})
    release = build_release(tmp_path, 50)
    assert [entry.path for entry in release.entries] == ["a.py"]
    assert release.left_out == (("venv/", "a virtual environment"),)


@pytest.mark.parametrize("in_git", [True, False])
def test_what_pip_install_leaves_stays_here(tmp_path: Path, in_git: bool) -> None:
    make_tree(tmp_path, {"pyproject.toml": "", "part/setup.py": "", "src/build/lib/mine.py": ""})
    if in_git:
        commit(tmp_path, "first")
    left = {
        "build/lib/a.py": "",
        "build/bdist.linux-x86_64/x": "",
        "part/build/lib/b.py": "",
        "demo.egg-info/PKG-INFO": "",
    }
    make_tree(tmp_path, {**left, "build/notes.py": ""})
    release = build_release(tmp_path, 50)
    sent = {entry.path for entry in release.entries}
    assert sent == {"pyproject.toml", "part/setup.py", "src/build/lib/mine.py"}
    assert release.left_out == (
        ("build/", "left by pip install"),
        ("demo.egg-info/", "left by pip install"),
        ("part/build/", "left by pip install"),
    )


def test_fetched_results_are_not_sent_back(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a.py": "1"})
    commit(tmp_path, "first")
    make_tree(
        tmp_path,
        {
            "results/20260101-000000-run-12ab/source/b.py": "2",
            "results/.pending/x.agent": "",
            "results/plot.py": "3",
        },
    )
    release = build_release(tmp_path, 50)
    assert [entry.path for entry in release.entries] == ["a.py", "results/plot.py"]
    assert release.left_out == (("results/", "fetched runs"),)


def test_private_keys_are_known_by_their_content() -> None:
    assert is_private_key("x", KEY.encode())
    assert not is_private_key("x.py", b'MARK = "' + KEY.encode())


def test_what_can_not_be_read_is_said_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without git; a folder as it is walked, a file as it is read."""

    shut_folders(monkeypatch)
    make_tree(tmp_path, {"a.py": "", "package/shut/b.py": ""})
    release = build_release(tmp_path, 50)
    assert release.left_out == (("package/shut/", "can't be read"),)
    assert how_to_send(release.left_out) == ["mend its rights, and it is sent"]
    with pytest.raises(UsageError, match=r"mem can't be read: Input/output error"):
        read_entry(Path("/proc/self"), "mem", None)


def test_a_folder_that_git_can_not_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_tree(tmp_path / "p", {"a.py": ""})
    commit(project, "first")
    make_tree(project, {"new/b.py": ""})
    (project / "new").chmod(0)
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root reads everything, and setpriv is not here")
    if os.geteuid() == 0:  # who reads everything, unless git is started without that right
        real, right = shutil.which("git"), "-dac_override,-dac_read_search"
        line = f'#!/bin/sh\nexec setpriv --bounding-set {right} {real} "$@"\n'
        make_tree(tmp_path / "bin", {"git": Executable(line)})
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    try:
        assert build_release(project, 50).left_out == (("new/", "can't be read"),)
    finally:
        (project / "new").chmod(0o755)


def test_a_link_that_leads_out_is_not_sent_by_naming_it(tmp_path: Path) -> None:
    make_tree(tmp_path, {"p/a.py": "", "p/common": Link("../lib"), "lib/b.py": "", "p/.env": ""})
    os.mkfifo(tmp_path / "p" / "pipe")
    release = build_release(tmp_path / "p", 50)
    include, other = how_to_send(release.left_out)
    assert "remote.include" in include and "upload-data" in other
    assert not how_to_send([("pipe", "not a regular file")])
    with pytest.raises(UsageError, match=r"remote\.include names common, a link that leads out"):
        build_release(tmp_path / "p", 50, "common")
    assert "pipe" not in paths(tmp_path / "p", include="pipe, .env")
