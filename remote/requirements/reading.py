"""Reads what remote.requirements names: a requirements file with what it includes, pyproject.toml
with extras, uv.lock, or conda's environment.yml. All become lines as pip takes them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from urllib.parse import quote, unquote

from remote.agent.shared.names import canonical
from remote.agent.shared.text import redact
from remote.errors import UsageError
from remote.requirements.conda import read_environment, write_environment
from remote.requirements.lines import (
    ARCHIVES,
    CONDA,
    CONSTRAINED,
    ELSEWHERE,
    IN_RELEASE,
    LOCAL,
    NAME,
    OURS,
    PREFERS_PYTHON,
    REQUIRES_PYTHON,
    Line,
    problems_of,
    read_text,
    split_hashes,
    split_lines,
    split_marker,
    with_markers,
    wrong,
    wrong_lines,
)
from remote.requirements.lock import lock_lines
from remote.requirements.packages import (
    Package,
    is_package,
    python_bounds,
    read_package,
    split_extras,
)
from remote.screen.text import one_line

EDITABLE = r"(?:-e|--editable)(?:\s*=\s*|\s+|(?<=-e))"
LOCAL_PACKAGE = re.compile(
    rf"(?P<editable>{EDITABLE})?(?P<quote>[\"']?)"
    r"(?:[\w.-]+\s*(?P<asked>\[[^\[\]]*\])?\s*@\s*(?=file:))?"
    r"(?P<place>[^\[\];]+?)(?P<extras>\[[^\[\]]*\])?(?P=quote)\s*(?:;(?P<marker>.*))?"
)
BUILD_OPTIONS = re.compile(r"\s(?:--config-settings?|--global-option|-C)(?:\s*=\s*|\s+)\S+")
REPOSITORY = re.compile(EDITABLE + r"[\"']?((?:git|hg|svn|bzr)\+[^\s\"']+)[\"']?")
INCLUDE = re.compile(r"(-r|-c|--requirement|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(\S.*)")
ARCHIVE = re.compile(
    rf"(?:file:)?(?P<path>[^\s;@:]+(?:{'|'.join(map(re.escape, ARCHIVES))}))"
    r"(?P<extras>\[[^\[\]]*\])?(?P<rest>\s*;.*|\s+--hash.*)?",
    re.I,
)
FIND_LINKS = re.compile(r"(?<!\S)(-f|--find-links)(?:\s*=\s*|\s+)(?!/|\S+://)(\S+)")
NAMED = re.compile(rf"({NAME})\s*(\[[^\[\]]*\])?\s*(?![^\s<>=!~;@(])")


def read_requirements(directory: Path, name: str) -> str:
    """The text of `name` below `directory`, files that it includes in their places. Raises
    UsageError naming every wrong line.
    """
    reader = Reader(directory)
    lines = list(dict.fromkeys(reader.of_others(reader.form(name))))
    if problems := dict.fromkeys([*reader.problems, *problems_of(lines)]):
        raise wrong_lines(list(problems), name, reader.remedies)
    bounds = zip((REQUIRES_PYTHON, PREFERS_PYTHON), python_bounds(directory), strict=True)
    about = [f"{option} {value}" for option, value in bounds if value]
    return "".join(f"{text}\n" for text in [*about, *(line.text for line in lines)])


@dataclass
class Reader:
    """`problems` and `remedies` are those of included files and packages; what is wrong with a line
    itself is seen afterwards. `own`: the packages of the project by their names. `within`,
    everywhere: the files and folders that are being read."""

    project: Path
    problems: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)
    own: dict[str, Package] = field(default_factory=dict)
    read: set[tuple[str, str, frozenset[str]]] = field(default_factory=set)

    def form(self, name: str) -> Iterator[Line]:
        plain, extras = split_extras(name)
        path = self.project / plain
        if path.name == "pyproject.toml":
            yield from self.package(path.parent, extras, plain, (path.resolve(),))
        elif path.name == "uv.lock":
            yield from (Line(plain, text) for text in lock_lines(self.project, path, extras))
        elif path.suffix in (".yml", ".yaml"):
            yield from self.conda(path, plain)
        else:
            yield from self.file(path, name, ())

    def conda(self, path: Path, name: str) -> Iterator[Line]:
        """What conda does not read: our own lines. What a package of the project needs is for its
        pip."""
        found, texts = read_environment(read_text(path, name, ELSEWHERE), name)
        asked = (Line(f"{name}, pip", text) for text in texts)
        lines = self.of_others(self.lines(asked, path.parent, (path.resolve(),)))
        ours = [line for line in lines if line.text.startswith(OURS)]
        pips = [line for line in dict.fromkeys(lines) if line not in ours]
        self.problems += problems_of(pips)
        told = write_environment(found, [line.text for line in pips])
        yield from (Line(f"{name} {n}", f"{CONDA} {text}") for n, text in enumerate(told))
        yield from ours

    def of_others(self, lines: Iterable[Line]) -> list[Line]:
        """Without those that name a package of the project: an index may have a stranger's of that
        name. What its extras need stands in their places."""
        found, known = list(lines), -1
        while known < len(self.own):
            known = len(self.own)
            found = list(self._of_others(found, frozenset()))
        return found

    def _of_others(self, lines: Iterable[Line], markers: frozenset[str]) -> Iterator[Line]:
        for line in lines:
            plain = split_hashes(line.text.removeprefix(f"{CONSTRAINED} "))[0]
            named = NAMED.match(plain)
            about = self.own.get(canonical(named[1])) if named else None
            if named is None or about is None:
                yield Line(line.where, with_markers(line.text, markers))
            elif not line.text.startswith(CONSTRAINED):
                under = markers | ({split_marker(plain)[1]} - {""})
                for extra in split_extras(named[2] or "")[1]:
                    yield from self._of_others(self.extra(about, extra, line.where, under), under)

    def extra(
        self, about: Package, name: str, where: str, markers: frozenset[str]
    ) -> Iterator[Line]:
        """Once for each condition: extras may name each other in a circle."""
        key = (about.name, canonical(name), markers)
        if key not in self.read:
            self.read.add(key)
            asked = _plain(Line(where, text) for text in about.lines_of(name))
            within = (about.folder.resolve(),)
            yield from self.inner(where, self.lines(asked, about.folder, within))

    def file(self, path: Path, name: str, within: tuple[Path, ...]) -> Iterator[Line]:
        chain = (*within, path.resolve())
        text = read_text(path, name) if within else read_text(path, name, ELSEWHERE)
        lines = split_lines(text, f"{name} " if within else "")
        yield from self.lines(lines, path.parent, chain)

    def lines(
        self, lines: Iterable[Line], folder: Path, within: tuple[Path, ...]
    ) -> Iterator[Line]:
        """Of a file or a package in `folder`: what they name here stands in their places."""
        for line in lines:
            if local := self.local(line.text, folder):
                place, extras, marker = local
                asked = self.package(place, extras, line.where, within)
                markers = frozenset({marker} if marker else ())
                for one in self.inner(line.where, asked):
                    yield Line(one.where, with_markers(one.text, markers))
            elif include := INCLUDE.match(line.text):
                yield from self.inner(line.where, self.include(include, folder, within))
            elif own := self.archive(line.text, folder):
                yield Line(line.where, own)
            else:
                yield Line(line.where, REPOSITORY.sub(_named, line.text))

    def archive(self, text: str, folder: Path) -> str | None:
        """A line that names an archive of the project, or a folder with some, as it is in the
        release; what it holds is part of what the requirements ask for."""
        if pages := FIND_LINKS.search(text):
            place = self.below(pages[2], folder)
            if place is None or not place.is_dir():
                return None
            rows = sorted((one.name, one.stat().st_size) for one in place.iterdir())
            digest = hashlib.sha256(repr(rows).encode()).hexdigest()
            there = f"--find-links {self.in_release(place)}#{digest}"
            return FIND_LINKS.sub(lambda _: there, text)
        found = ARCHIVE.fullmatch(text)
        place = self.below(found["path"], folder) if found else None
        if found is None or place is None or not place.is_file():
            return None
        stem = place.name.split("-")[0] if place.suffix == ".whl" else place.name.rpartition("-")[0]
        digest = hashlib.sha256(place.read_bytes()).hexdigest()
        address = f"{self.in_release(place)}#sha256={digest}"
        return f"{stem}{found['extras'] or ''} @ {address}{found['rest'] or ''}"

    def below(self, name: str, folder: Path) -> Path | None:
        """What is there of that name in the project; pip takes it from where it is run."""
        places = [Path(os.path.normpath(one / name)) for one in (self.project, folder)]
        there = (one for one in places if one.exists() and one.is_relative_to(self.project))
        return next(there, None)

    def in_release(self, place: Path) -> str:
        return IN_RELEASE + quote(place.relative_to(self.project).as_posix())

    def inner(self, where: str, lines: Iterator[Line]) -> Iterator[Line]:
        try:
            yield from lines
        except UsageError as error:
            self.problems.append(f"{where}: {error.message}")
            self.remedies += [error.remedy] if error.remedy else []

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

    def local(self, text: str, folder: Path) -> tuple[Path, tuple[str, ...], str] | None:
        """The folder, the extras and the marker of a line that names a package of the project:
        `-e .`, `./libs/x[train] ; python_version > "3.8"`."""
        found = LOCAL_PACKAGE.fullmatch(BUILD_OPTIONS.sub("", text).strip())
        if not found:
            return None
        name = re.sub(r"file:(?://(?:localhost)?(?=/))?", "", found["place"])
        if name != found["place"]:
            name = unquote(name.partition("#")[0])
        name = name.replace("\\", "/")
        if not (found["editable"] or "/" in name or name.startswith(".")):
            return None
        # pip takes it from where it is run.
        places = [one for one in (self.project / name, folder / name) if os.path.isdir(one)]
        if not places:
            return None
        place = next(filter(is_package, places), places[0])
        extras = split_extras(found["asked"] or found["extras"] or "")[1]
        return place, extras, (found["marker"] or "").strip()

    def package(
        self, folder: Path, extras: tuple[str, ...], where: str, within: tuple[Path, ...]
    ) -> Iterator[Line]:
        """What a package's metadata asks for: lines, and files that it names in turn."""
        if folder.resolve() in within:
            return
        about = read_package(self.project, folder)
        if about.name:
            self.own.setdefault(about.name, about)
        place = f"{LOCAL} {about.place}"
        asked = chain(about.needs, *map(about.lines_of, extras), [place])
        lines = _plain(Line(where, text) for text in asked)
        yield from self.lines(lines, folder, (*within, folder.resolve()))


def _plain(lines: Iterable[Line]) -> Iterator[Line]:
    """Lists in setup.py are often those of a requirements file, with its remarks."""
    for line in lines:
        yield from (Line(line.where, " ".join(one.text.split())) for one in split_lines(line.text))


def _named(found: re.Match[str]) -> str:
    """`-e git+…#egg=name` is installed like any other package."""
    egg = re.search(r"[#&]egg=([\w.-]+)", found[1])
    return f"{egg[1]} @ {found[1]}" if egg else found[1]
