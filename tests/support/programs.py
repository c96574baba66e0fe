"""Programs that some tests need beyond python3 and git: `@pytest.mark.needs("ssh", "tmux")`."""

from __future__ import annotations

import shutil

import pytest

from tests.support.sshd import EMBEDDED, expected_kind

PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "tmux": "tmux",
    "rsync": "rsync",
}
MISSED = pytest.StashKey[set[str]]()


def is_there(program: str) -> bool:
    if program == "sshd":
        return "sshd" in expected_kind(EMBEDDED)
    return shutil.which(program) is not None


def how_to_get(programs: set[str]) -> str:
    packages = sorted({PACKAGES[name] for name in programs})
    return f"apt install {' '.join(packages)}, or on macOS brew install tmux rsync"


def skip_without(item: pytest.Item) -> None:
    """Skip a test that needs what is not here, and remember that for the line at the end."""
    needed = {str(name) for mark in item.iter_markers("needs") for name in mark.args}
    missing = {name for name in needed if not is_there(name)}
    if missing:
        item.config.stash.setdefault(MISSED, set()).update(missing)
        pytest.skip(f"needs {', '.join(sorted(missing))}")


def tell_missing(reporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if missing := config.stash.get(MISSED, set()):
        names = ", ".join(sorted(missing))
        reporter.write_line(f"tests were skipped for want of {names}: {how_to_get(missing)}")
