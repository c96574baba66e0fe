"""Reads what remote.requirements names: a requirements file with what it includes, pyproject.toml
with extras, uv.lock, or conda's environment.yml. All become lines as pip takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from remote.agent.shared.text import redact
from remote.errors import UsageError
from remote.requirements.lines import (
    ARCHIVES,
    CONDA,
    CONSTRAINED,
    LOCAL,
    PREFERS_PYTHON,
    REQUIRES_PYTHON,
    Line,
    problems_of,
    read_text,
    split_lines,
    wrong,
    wrong_lines,
)
from remote.requirements.lock import lock_lines
from remote.requirements.packages import package_lines, python_bounds, split_extras
from remote.screen.text import one_line

FOLDER = re.compile(
    r"(?:(?:-e|--editable)(?:\s*=\s*|\s+|(?<=-e)))?"
    r"(\.{1,2}(?:[/\\][^\[\]]*)?|[^\[\]:@\s]+[/\\][^\[\]:@]*)(\[[^\[\]]*\])?"
)
EDITABLE = re.compile(r"(?:-e|--editable)[\s=]*((?:git|hg|svn|bzr)\+\S+)")
INCLUDE = re.compile(r"(-r|-c|--requirement|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(\S.*)")


def read_requirements(directory: Path, name: str) -> str:
    """The text of `name` below `directory`, files that it includes in their places. Raises
    UsageError naming every wrong line.
    """
    reader = Reader(directory)
    lines = list(dict.fromkeys(reader.form(name)))
    if problems := reader.problems + problems_of(lines):
        raise wrong_lines(problems, name)
    bounds = zip((REQUIRES_PYTHON, PREFERS_PYTHON), python_bounds(directory), strict=True)
    about = [f"{option} {value}" for option, value in bounds if value]
    return "".join(f"{text}\n" for text in [*about, *(line.text for line in lines)])


def local_packages(text: str) -> list[str]:
    """The folders of the project's own packages in the text of requirements; `.` is the project
    itself."""
    found = [line[len(LOCAL) :].strip() for line in text.splitlines() if line.startswith(LOCAL)]
    return list(dict.fromkeys(found))


@dataclass
class Reader:
    """`problems` are those of included files and packages; what is wrong with a line itself is seen
    afterwards. `within`, everywhere: the files that are being read."""

    project: Path
    problems: list[str] = field(default_factory=list)

    def form(self, name: str) -> Iterator[Line]:
        plain, extras = split_extras(name)
        path = self.project / plain
        if path.name == "pyproject.toml":
            yield from self.package(path.parent, extras, plain, (path.resolve(),))
        elif path.name == "uv.lock":
            yield from (Line(plain, text) for text in lock_lines(path, extras))
        elif path.name in ("environment.yml", "environment.yaml"):
            yield from self.conda(read_text(path, plain), plain)
        else:
            yield from self.file(path, name, ())

    def conda(self, text: str, name: str) -> Iterator[Line]:
        """conda reads it there, but for the project's own package, which is not installed."""
        for number, raw in enumerate(text.splitlines(), 1):
            item = re.fullmatch(r"\s*-\s+(?:(-e)\s*|(-r)\s*)([.\w/-]+)\s*", raw)
            if item and item[2]:
                self.problems.append(f"{name}: {item[3]} is not there for conda: list its lines")
            elif raw.split("#")[0].strip():
                where = f"{name} line {number}"
                yield Line(where, f"{LOCAL} {item[3]}" if item else f"{CONDA} {raw}")

    def file(self, path: Path, name: str, within: tuple[Path, ...]) -> Iterator[Line]:
        chain = (*within, path.resolve())
        for line in split_lines(read_text(path, name), f"{name} " if within else ""):
            if local := self.local(line.text, path.parent):
                yield from self.inner(line.where, self.package(*local, line.where, chain))
            elif include := INCLUDE.match(line.text):
                yield from self.inner(line.where, self.include(include, path.parent, chain))
            else:
                yield Line(line.where, EDITABLE.sub(_named, line.text))

    def inner(self, where: str, lines: Iterator[Line]) -> Iterator[Line]:
        try:
            yield from lines
        except UsageError as error:
            self.problems.append(f"{where}: {error.message}")

    def include(
        self, found: re.Match[str], folder: Path, within: tuple[Path, ...]
    ) -> Iterator[Line]:
        target = found[2].strip("\"'")
        if "://" in target:
            shown = redact(one_line(target, 80))
            raise wrong(f"{shown}: an included file must be here, not at an address", "copy it")
        if (folder / target).resolve() in within:
            raise wrong(f"{target} includes itself", "leave that line out")
        for line in self.file(folder / target, target, within):
            is_limit = found[1] in ("-c", "--constraint") and not line.text.startswith("-")
            yield Line(line.where, f"{CONSTRAINED} {line.text}") if is_limit else line

    def local(self, text: str, folder: Path) -> tuple[Path, tuple[str, ...]] | None:
        """The folder and the extras of a line that names a package of the project: `-e .`,
        `./libs/x[train]`."""
        found = FOLDER.fullmatch(text)
        if not found or text.lower().endswith(ARCHIVES):
            return None
        name = found[1].replace("\\", "/")
        # pip takes it from where it is run.
        places = [place for place in (folder / name, self.project / name) if place.is_dir()]
        return (places[0], split_extras(found[2] or "")[1]) if places else None

    def package(
        self, folder: Path, extras: tuple[str, ...], where: str, within: tuple[Path, ...]
    ) -> Iterator[Line]:
        """What a package's metadata asks for: lines, and files that it names in turn."""
        for text in package_lines(self.project, folder, extras):
            if text.startswith("-r "):
                name = text[3:].strip()
                yield from self.file(folder / name, name, within)
            else:
                yield Line(where, " ".join(text.split()))


def _named(found: re.Match[str]) -> str:
    """`-e git+…#egg=name` is installed like any other package."""
    egg = re.search(r"[#&]egg=([\w.-]+)", found[1])
    return f"{egg[1]} @ {found[1]}" if egg else found[1]
