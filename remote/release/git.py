"""What git says of a project."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from remote.errors import UsageError


def run_git(project: Path, *arguments: str, warnings: list[str] | None = None) -> bytes | None:
    """Output, or None where there is no git or no repository; `warnings` gets what git says beside
    it. Raises UsageError for a repository that git refuses."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    }
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotepath=off", "-C", str(project), *arguments],
            capture_output=True,
            timeout=120,
            env=environment | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return None
    if done.returncode == 0:
        if warnings is not None:
            warnings += os.fsdecode(done.stderr).splitlines()
        return done.stdout
    error = done.stderr.decode("utf-8", "replace").strip()
    if allowed := re.search(r"git config --global --add safe\.directory .+", error):
        text = "git reads no repository that belongs to another user"
        raise UsageError(text, step="release", remedy=allowed[0])
    if "not a git repository" in error or arguments[0] in ("log", "check-ignore"):
        return None
    raise UsageError(
        f"git can't list the files: {error.splitlines()[0] if error else done.returncode}",
        step="release",
    )


def zero_separated(output: bytes) -> list[str]:
    return [os.fsdecode(name) for name in output.split(b"\0") if name]


def describe_origin(project: Path) -> str:
    """Branch, commit and whether there were changes; empty without git or before the first
    commit."""
    commit = run_git(project, "log", "-1", "--format=%h %s") or b""
    return commit.decode("utf-8", "replace").strip()[:200]


def project_identity(project: Path) -> str | None:
    """The first commit, and the folder in the repository, tell clones of one project from another
    project of the same name; None without git or its full history."""
    if (run_git(project, "rev-parse", "--is-shallow-repository") or b"").strip() != b"false":
        return None
    roots = run_git(project, "log", "--max-parents=0", "--format=%H", "--reverse")
    if not roots or not roots.strip():
        return None
    folder = os.fsdecode(run_git(project, "rev-parse", "--show-prefix") or b"").strip("/\n")
    return ":".join(filter(None, [roots.decode().split()[0], folder]))
