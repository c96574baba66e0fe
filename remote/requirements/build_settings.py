"""What a package of the project says of itself: pyproject.toml, setup.cfg and setup.py in its
folder, read without running anything."""

from __future__ import annotations

import configparser
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from remote.requirements.lines import NAME, read_text
from remote.requirements.packages import readable, toml_in
from remote.requirements.setup_py import setup_arguments


def table(data: Any, *keys: str) -> dict[str, Any]:
    """A table in TOML; empty where there is none."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def texts(value: Any) -> list[str]:
    """Of a setting that is one text or a list of them."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [one for one in values if isinstance(one, str)]


def pairs_of(text: str) -> dict[str, str]:
    """`name = value` lines, as setup.cfg has them in an option."""
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.partition("=") for line in lines if "=" in line and line[0] not in "#;")
    return {name.strip(): value.strip() for name, _, value in pairs}


class Settings:
    """Of the package in a folder below the project. What is of another form than expected counts as
    left out. `shown`: the folder, for people."""

    def __init__(self, project: Path, folder: str) -> None:
        self.project, self.below = project, folder
        self.folder = project / folder
        self.shown = self.folder.resolve().name if folder == "." else folder

    @cached_property
    def toml(self) -> dict[str, Any]:
        return toml_in(self.folder)

    @cached_property
    def config(self) -> configparser.ConfigParser:
        found = configparser.ConfigParser(interpolation=None)
        found.optionxform = str  # type: ignore[assignment,method-assign]  # groups have capitals
        with readable(f"{self.shown}/setup.cfg"):
            found.read_string(self.read("setup.cfg"))
        return found

    @cached_property
    def setup(self) -> dict[str, Any]:
        """What setup.py hands to setup(); `Unknown` where it is computed."""
        try:
            return setup_arguments(self.folder / "setup.py")
        except (SyntaxError, ValueError, RecursionError):
            return {}

    @cached_property
    def cargo(self) -> dict[str, Any]:
        return toml_in(self.folder, "Cargo.toml")

    @cached_property
    def name(self) -> str:
        known = [
            table(self.toml, "project").get("name"),
            table(self.toml, "tool", "poetry").get("name"),
            self.option("metadata", "name"),
            self.setup.get("name"),
        ]
        if self.setup or self.config.sections():
            known.append(self.folder.resolve().name)
        return next((one for one in known if isinstance(one, str) and re.fullmatch(NAME, one)), "")

    def option(self, section: str, name: str) -> str:
        return self.config.get(section, name, fallback="").strip()

    def read(self, name: str) -> str:
        path = self.folder / name
        return read_text(path, name).strip() if path.is_file() else ""
