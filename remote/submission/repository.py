"""A bundle as a git repository of one commit, and where it is pushed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from remote.errors import RemoteError, TransferFailed, UsageError
from remote.screen.display import Display
from remote.screen.text import one_line

NOBODY = ("-c", "user.name=submission", "-c", "user.email=submission@localhost")
"""The commit's identity where the user has none."""


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
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        fatal = next(
            (line for line in lines if line.startswith(("fatal:", "error:", "remote: error"))),
            lines[-1] if lines else "",
        )
        raise TransferFailed(
            f"git {words[0]} failed: {one_line(fatal, 300)}",
            step="submit",
            remedy=f"look at {place}",
        )
    return done.stdout.strip()


def make_repository(place: Path, message: str) -> str | None:
    """One commit on main with every file, ignored ones included; its short name, or None without
    git."""
    if shutil.which("git") is None:
        return None
    git(place, "init", "--quiet", "--initial-branch=main")
    known = all(_configured(place, name) for name in ("user.name", "user.email"))
    git(place, "add", "--all", "--force")
    words = ("commit", "--quiet", "--no-verify", "--no-gpg-sign", "-m", message)
    git(place, *words, options=() if known else NOBODY)
    return git(place, "rev-parse", "--short", "HEAD")


def _configured(place: Path, name: str) -> bool:
    try:
        return bool(git(place, "config", name))
    except RemoteError:
        return False


def push_to(place: Path, url: str, display: Display) -> None:
    if url.startswith("-"):
        raise UsageError(
            f"--push needs the address of a repository, not {url!r:.60}", step="submit"
        )
    git(place, "push", "--quiet", url, "main:main")
    display.line(f"pushed to {without_password(url)}")


def without_password(url: str) -> str:
    head, separator, rest = url.partition("://")
    return f"{head}://{rest.rpartition('@')[2]}" if separator else url


def publish(place: Path, name: str, display: Display, yes: bool) -> None:
    """Create a public repository by GitHub's own program, after a confirmation; its address is what
    is to be sent."""
    if shutil.which("gh") is None:
        raise UsageError(
            "GitHub's program gh is not installed",
            step="submit",
            remedy="create a repository by hand, then --push URL",
        )
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
