"""Our trainer, where the project has it: known by what lies there, its configuration read here,
without torch."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from remote.errors import UsageError
from remote.records import Settings

OWN_MARK = re.compile(r'^PROJECT = "remote-train"$', re.MULTILINE)
"""In our trainer's __init__.py: a package of that name may well be somebody's own."""
OWN_MODULE = "trainer.train"
ARCHIVE = "cifar-10-python.tar.gz"


def runs_own_trainer(line: str, project: Path) -> bool:
    """Whether the command is our trainer, whose arguments, recipes and summary we know: by name,
    and by what lies there."""
    if OWN_MODULE not in shlex.split(line):
        return False
    try:
        return bool(
            OWN_MARK.search(
                (project / "trainer" / "__init__.py").read_text(encoding="utf-8", errors="replace")
            )
        )
    except OSError:
        return False


def no_trainer(line: str, project: Path) -> str | None:
    """Why nothing can be trained: the command is the default, and our trainer is not here."""
    if line != Settings.command or (project / "trainer").is_dir():
        return None
    return (
        f"remote.command is `{line}`, and there is no trainer here: `python -m remote init` sets"
        " yours"
    )


def load_config_module(project: Path) -> Any:
    """The project's own trainer.config, which imports no torch. Raises UsageError where it can't be
    imported."""
    if str(project) not in sys.path:
        sys.path.insert(0, str(project))
    try:
        return importlib.import_module("trainer.config")
    except Exception as error:
        raise UsageError(
            f"trainer/config.py can't be imported: {type(error).__name__}: {error}", step="train"
        ) from None


def load_data_modules(project: Path) -> tuple[Any, Any]:
    """The project's own trainer.data.archive and trainer.data.listing, which import no torch."""
    load_config_module(project)  # makes the project importable, or says why it isn't
    names = ("trainer.data.archive", "trainer.data.listing")
    return importlib.import_module(names[0]), importlib.import_module(names[1])


def require_whole_trainer(project: Path, sent: Iterable[str]) -> None:
    """Raises UsageError where a .gitignore keeps a part of our trainer from being sent: `data/` in
    it means trainer/data/ as well."""
    known = set(sent)
    for file in sorted((project / "trainer").rglob("*.py")):
        path = file.relative_to(project).as_posix()
        if path not in known and "__pycache__" not in path:
            raise UsageError(
                f"{path} is not sent: a .gitignore or .git/info/exclude leaves it out",
                step="release",
                remedy="write /data/ there in place of data/, or add !/trainer/**",
            )
