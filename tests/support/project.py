"""A user's project, and trees of files with hostile names.

make_project(path, {"train.py": "print(1)"}, settings={"python": sys.executable})
make_tree(path, HOSTILE); assert snapshot(path) == snapshot(other)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.sshd import environment

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = ("fabfile.py", "remote", "trainer", "requirements.txt")
"""What a user copies from this repository into a project."""
IGNORED = ".venv/\n/runs/\n/results/\n/data/\n__pycache__/\n*.pyc\n"


@dataclass(frozen=True)
class Executable:
    """A file with its executable bit set."""

    content: str | bytes


@dataclass(frozen=True)
class Link:
    """A symbolic link, as it is written."""

    target: str


Content = str | bytes | Executable | Link

HOSTILE: Mapping[str, Content] = {
    "plain.txt": "plain\n",
    "empty": "",
    "bytes.bin": bytes(range(256)),
    "crlf.txt": b"a\r\nb\r\n",
    "run.sh": Executable("#!/bin/sh\necho run\n"),
    "with space/and  two spaces.txt": "s",
    " leading and trailing ": "s",
    "line\nbreak.txt": "n",
    "tab\tand\x1b[31mescape": "t",
    "-rf": "dash",
    "--delete/-n": "dashes",
    "ünïcode/日本語 🎉.txt": "u",
    "quotes/'\"`$(touch pwned)`; & | > <": "q",
    "glob/*?[a-z]{b,c}~": "g",
    "back\\slash": "b",
    "%h%%25": "p",
    "dots/...": "d",
    ".hidden/.file": "h",
    "links/file": Link("../plain.txt"),
    "links/folder": Link("../with space"),
    "links/dangling": Link("nowhere"),
    "a/b/c/d/e/f/g/h/i/j/deep": "deep",
    "long" + "g" * 200: "long",
}
"""Names and kinds that must arrive byte for byte."""


def make_tree(path: Path, files: Mapping[str, Content]) -> Path:
    """Write `files` (name below `path` → content) and return `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            target.symlink_to(content.target)
            continue
        data = content.content if isinstance(content, Executable) else content
        target.write_bytes(data.encode() if isinstance(data, str) else data)
        target.chmod(0o755 if isinstance(content, Executable) else 0o644)
    return path


def snapshot(path: Path) -> dict[str, str]:
    """Name → kind and content of every file and link below `path`; folders count by what they hold.

    A file that goes while this looks (the temporary form of one that a server is writing) was not
    there.
    """
    found = {}
    for folder, folders, files in os.walk(path):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in [*files, *links]:
            entry = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):
                found[str(entry.relative_to(path))] = _describe(entry)
    return found


def _describe(entry: Path) -> str:
    if entry.is_symlink():
        return f"link {os.readlink(entry)}"
    kind = "executable" if entry.stat().st_mode & 0o100 else "file"
    return f"{kind} {hashlib.sha256(entry.read_bytes()).hexdigest()}"


def make_project(
    path: Path,
    files: Mapping[str, Content] | None = None,
    *,
    settings: Mapping[str, object] | None = None,
    parts: tuple[str, ...] = PARTS,
    git: bool = True,
) -> Path:
    """A project of a user: this repository's `parts`, `files`, and fabric.yaml with `settings`
    below `remote:`.

    All is committed, so that git has nothing to report; `git=False` leaves a plain folder.
    """
    path.mkdir(parents=True, exist_ok=True)
    for part in parts:
        _copy(REPOSITORY / part, path / part)
    yaml = json.dumps(
        {"load_ssh_configs": False, "remote": dict(settings or {})}, indent=2
    )  # JSON is YAML
    make_tree(path, {".gitignore": IGNORED, "fabric.yaml": yaml + "\n", **(files or {})})
    if git:
        commit(path, "first")
    return path


def commit(path: Path, message: str) -> None:
    """Commit everything in `path`, making it a repository if it is none; no setting of the
    developer's plays a part."""
    who = [
        "-c",
        "user.name=Test",
        "-c",
        "user.email=test@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    if not (path / ".git").exists():
        _git(path, "init", "-q", "-b", "main")
    _git(path, "add", "--all")
    _git(path, *who, "commit", "-q", "--allow-empty", "-m", message)


def _git(path: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", *arguments],
        cwd=path,
        env=environment(),
        check=True,
        capture_output=True,
        timeout=60,
    )


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(
            source,
            target,
            ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
            dirs_exist_ok=True,
        )
    elif source.exists():
        shutil.copy2(source, target)


def shut_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders named `shut` can't be read, not even by root."""

    def look(path: Any = ".") -> Any:
        if str(path).endswith("/shut"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", look)
