"""A bundle as a git repository of one commit, and where it is pushed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from remote.agent.shared.text import redact
from remote.errors import RemoteError, TransferFailed, UsageError
from remote.project.options import SubmitOptions
from remote.screen.display import Display
from remote.screen.text import one_line
from remote.submission.bundle import SUMS

NOBODY = ("-c", "user.name=submission", "-c", "user.email=submission@localhost")
"""The commit's identity where the user has none."""
ADVICE = re.compile(r"hint:|To |Please make sure|and the repository exists")
"""Of git's lines those that say nothing of the cause."""


def git(place: Path, *words: str, options: Sequence[str] = ()) -> str:
    """Its output. Raises TransferFailed with its last words."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("GIT_") or key == "GIT_SSH_COMMAND"
    }
    done = subprocess.run(
        ["git", *options, *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = "; ".join(line for line in lines if not ADVICE.match(line))
        afar = words[0] in ("push", "fetch", "ls-remote")
        raise TransferFailed(
            f"git {words[0]} failed: {one_line(redact(said), 300)}",
            step="submit",
            remedy="check the address, and that it lets you in" if afar else f"look at {place}",
        )
    return done.stdout.strip()


def make_repository(place: Path, message: str) -> str | None:
    """One commit on main with every file, ignored ones included; its short name, or None without
    git."""
    if shutil.which("git") is None:
        return None
    git(place, "init", "--quiet", "--initial-branch=main")
    git(place, "add", "--all", "--force")
    words = ("commit", "--quiet", "--no-verify", "--no-gpg-sign", "-m", message)
    git(place, *words, options=_identity(place))
    return git(place, "rev-parse", "--short", "HEAD")


def _identity(place: Path) -> Sequence[str]:
    known = all(_configured(place, name) for name in ("user.name", "user.email"))
    return () if known else NOBODY


def _configured(place: Path, name: str) -> bool:
    try:
        return bool(git(place, "config", name))
    except RemoteError:
        return False


def require_way(options: SubmitOptions) -> None:
    """Before anything is evaluated: that it could be pushed. Raises UsageError, TransferFailed."""
    if (options.push or options.github) and shutil.which("git") is None:
        raise UsageError(
            "nothing can be pushed without git",
            step="submit",
            remedy="install git, then the same command again",
        )
    if options.push:
        if options.push.startswith("-"):
            text = f"--push needs the address of a repository, not {options.push!r:.60}"
            raise UsageError(text, step="submit")
        _tip(Path.cwd(), _address(options.push))
    elif options.github and shutil.which("gh") is None:
        raise UsageError(
            "GitHub's program gh is not installed",
            step="submit",
            remedy="create a repository by hand, then --push URL",
        )


def push_to(place: Path, url: str, display: Display) -> None:
    """Into an empty repository, or behind an earlier bundle, which its history keeps. Raises
    UsageError where something else is there."""
    address, commit = _address(url), "main"
    if _tip(place, address):
        git(place, "fetch", "--quiet", "--depth=1", address, "refs/heads/main")
        if SUMS not in git(place, "ls-tree", "--name-only", "FETCH_HEAD").splitlines():
            raise UsageError(
                f"{without_password(url)} holds something else than a bundle",
                step="submit",
                remedy="name an empty repository",
            )
        if git(place, "rev-parse", "FETCH_HEAD^{tree}") == git(place, "rev-parse", "main^{tree}"):
            display.line(f"{without_password(url)} has it already")
            return
        message = git(place, "log", "-1", "--format=%B", "main")
        words = ("commit-tree", "main^{tree}", "-p", "FETCH_HEAD", "-m", message)
        commit = git(place, *words, options=_identity(place))
    git(place, "push", "--quiet", address, f"{commit}:refs/heads/main")
    display.line(f"pushed to {without_password(url)}")


def _tip(place: Path, address: str) -> str:
    """The commit at its main; empty where it has none."""
    return git(place, "ls-remote", address, "refs/heads/main")


def _address(url: str) -> str:
    """Of a folder as it was typed here: git would look for it from the bundle on."""
    return str(Path(url).absolute()) if "://" not in url and Path(url).is_dir() else url


def without_password(url: str) -> str:
    head, separator, rest = url.partition("://")
    return f"{head}://{rest.rpartition('@')[2]}" if separator else url


def publish(place: Path, name: str, display: Display, yes: bool) -> None:
    """Create a public repository by GitHub's own program, after a confirmation; its address is what
    is to be sent."""
    if not yes:
        agreed = display.confirm(
            f"create the PUBLIC repository {name} on GitHub and push {place} to it?"
        )
        if agreed is None:
            raise UsageError(
                "a public repository is created only after a confirmation",
                step="submit",
                remedy="--yes says so beforehand",
            )
        if not agreed:
            display.note("not published; the bundle stays where it is")
            return
    argv = ["gh", "repo", "create", name, "--public", f"--source={place}", "--remote=origin"]
    done = subprocess.run([*argv, "--push"], capture_output=True, text=True)
    address = next((line for line in done.stdout.splitlines() if line.startswith("https://")), "")
    if done.returncode or not address:
        raise TransferFailed(
            f"gh: {one_line(done.stderr.strip() or done.stdout, 300)}",
            step="submit",
            remedy="gh auth login",
        )
    display.line(f"published, to be sent: {address}")
