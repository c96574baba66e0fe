"""Handing in: where a bundle is pushed to, and a repository on GitHub made for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from remote.errors import RemoteError, TransferFailed, UsageError
from remote.screen.display import Display
from remote.submission import repository
from tests.support.desk import Desk
from tests.support.project import Executable, make_tree
from tests.support.sshd import sparse_path

pytestmark = pytest.mark.usefixtures("nobody")


def test_pushing_where_nothing_is_told_in_one_line_and_the_bundle_stays(desk: Desk) -> None:
    with pytest.raises(RemoteError, match=r"git ls-remote failed: fatal: .*nowhere\.git"):
        desk.submit(push=str(desk.dest.parent / "nowhere.git"))
    with pytest.raises(UsageError, match="--push needs the address"):
        desk.submit(push="--receive-pack=touch pwned")
    assert not desk.dest.exists(), "told before anything is evaluated"
    assert (
        repository.without_password("https://me:token@github.com/a/b.git")
        == "https://github.com/a/b.git"
    )


def test_the_next_bundle_is_pushed_behind_the_one_before(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an address that begins where it is typed; what is no bundle is left alone."""
    bare, clone = tmp_path / "bare.git", tmp_path / "clone"
    subprocess.run(["git", "init", "--quiet", "--bare", bare], check=True)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert desk.submit(push="bare.git") == 0
    assert "bare.git has it already" in desk.told
    make_tree(desk.run, {"curves.png": b"other"})
    assert desk.submit(push="bare.git") == 0 and "pushed to bare.git" in desk.told
    subprocess.run(["git", "clone", "--quiet", "--branch=main", bare, clone], check=True)
    assert desk.verify(clone) == "" and (clone / "curves.png").read_bytes() == b"other"
    assert repository.git(clone, "rev-list", "--count", "HEAD") == "2"
    repository.git(clone, "rm", "--quiet", "SHA256SUMS")
    repository.git(clone, "commit", "--quiet", "-m", "mine", options=repository.NOBODY)
    repository.git(clone, "push", "--quiet", "origin", "HEAD:main")
    with pytest.raises(UsageError, match="holds something else than a bundle"):
        desk.submit(push="bare.git")


GH = """#!/bin/sh
echo "$@" >> "$TOLD"
test -n "$FAILS" && {
  echo "GraphQL: Name already exists on this account (createRepository)" >&2; exit 1; }
for word; do case $word in --source=*) source=${word#--source=};; esac; done
git -C "$source" remote add origin "$BARE" && git -C "$source" push --quiet origin main || exit 1
echo "https://github.com/you/cifar10"
"""


@pytest.fixture
def gh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for GitHub's program, with a bare repository for GitHub. Returns what it was
    told."""
    make_tree(tmp_path / "bin", {"gh": Executable(GH)})
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("BARE", str(tmp_path / "github.git"))
    subprocess.run(
        ["git", "init", "--quiet", "--bare", "--initial-branch=main", tmp_path / "github.git"],
        check=True,
    )
    return tmp_path / "told"


def test_a_public_repository_is_made_only_after_a_yes_and_its_address_is_shown(
    desk: Desk, gh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--yes says so beforehand"):
        desk.submit(github="you/cifar10")
    assert not gh.exists() and desk.verify() == ""
    monkeypatch.setattr(
        Display,
        "confirm",
        lambda display, question: "PUBLIC repository you/cifar10" not in question,
    )
    desk.submit(github="you/cifar10")
    assert not gh.exists() and "not published" in desk.told
    assert desk.submit(github="you/cifar10", yes=True) == 0
    assert "published, to be sent: https://github.com/you/cifar10\n" in desk.told
    assert (
        gh.read_text()
        == f"repo create you/cifar10 --public --source={desk.dest} --remote=origin --push\n"
    )
    subprocess.run(
        ["git", "clone", "--quiet", tmp_path / "github.git", tmp_path / "clone"], check=True
    )
    assert desk.verify(tmp_path / "clone") == ""


def test_what_github_refuses_is_told_in_one_line_and_the_bundle_stays(
    desk: Desk, gh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(TransferFailed, match="Name already exists"):
        desk.submit(github="cifar10", yes=True)
    assert desk.verify() == ""
    monkeypatch.setenv("PATH", sparse_path(tmp_path / "git", names=("git",)))
    with pytest.raises(
        UsageError, match="gh is not installed — create a repository by hand, then --push URL"
    ):
        desk.submit(github="cifar10", yes=True, dest=str(desk.dest.parent / "other"))
