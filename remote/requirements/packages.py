"""What a package of the project itself (`-e .`, `./libs/x`, pyproject.toml) needs.

Such a package is not installed: its code goes with the release and is imported from each run's own
copy. What it needs is read from its metadata here, so a new dependency is a new environment and a
changed line of code is not.
"""

from __future__ import annotations

import configparser
import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from remote.agent.shared.local_package import INSTALLABLE
from remote.agent.shared.names import canonical
from remote.errors import UsageError
from remote.requirements.lines import ELSEWHERE, read_text, wrong
from remote.requirements.setup_py import Unknown, setup_arguments
from remote.screen.text import one_line

BOUNDS = re.compile(r"(,?((==|!=)\d+(\.\d+)*(\.\*)?|[<>]=?\d+(\.\d+)*|~=\d+(\.\d+)+))+")
"""Of pythons, as `packaging` takes them; others bound nothing."""


def split_extras(text: str) -> tuple[str, tuple[str, ...]]:
    """`pyproject.toml[train,dev]` → the name, and the extras."""
    found = re.fullmatch(r"(.*?)\[([^\[\]]*)\]", text.strip())
    if not found:
        return text.strip(), ()
    return found[1].strip(), tuple(part.strip() for part in found[2].split(",") if part.strip())


def read_toml(path: Path) -> dict[str, Any]:
    """Raises UsageError where it can't be read."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(read_text(path, path.name, ELSEWHERE))
    except ValueError as error:
        said = one_line(str(error), 200)
        raise wrong(f"{path.name} is no TOML: {said}", "correct it; nothing was sent") from None


def toml_in(folder: Path, name: str = "pyproject.toml") -> dict[str, Any]:
    """Empty without the file."""
    return read_toml(folder / name) if (folder / name).is_file() else {}


def python_bounds(project: Path) -> tuple[str, str]:
    """requires-python of the project's pyproject.toml, and the version in its .python-version;
    empty where they say nothing."""
    try:
        about = table(read_toml(project / "pyproject.toml"), "project")
    except (UsageError, ValueError):
        about = {}
    asked = "".join(str(about.get("requires-python") or "").split())
    try:
        named = (project / ".python-version").read_text("utf-8", "replace")
    except OSError:
        named = ""
    preferred = re.match(r"(?:cpython-?)?(3\.\d+(?:\.\d+)?)\s*$", named, re.MULTILINE)
    return asked if BOUNDS.fullmatch(asked) else "", preferred[1] if preferred else ""


@dataclass(frozen=True)
class Package:
    """What is said in a package's folder: lines as pip takes them, and `-r FILE` for a file beside
    it. `place` is the folder as the project names it, `file` what says it; `name` is canonical,
    empty where it is not told. `extras`, asked only where some are wanted: names to lines, or to
    {include-group: name} among them."""

    folder: Path
    place: str
    file: str
    name: str
    needs: Sequence[str]
    extras: Callable[[], Mapping[str, Any]]

    def lines_of(self, extra: str, within: tuple[str, ...] = ()) -> Iterator[str]:
        """Of an extra, or a dependency group."""
        with readable(self.file):
            known = {canonical(name): lines for name, lines in self.extras().items()}
        name = canonical(extra)
        if name not in known:
            problem = f"{self.file} has no extra {extra!r}; it has {', '.join(known) or 'none'}"
            raise wrong(problem, "correct its name")
        if name in within:
            raise wrong(f"{self.file}: {extra} includes itself", "leave that out")
        lines = known[name]
        groups = [one for one in lines if isinstance(one, dict)] if isinstance(lines, list) else []
        with readable(self.file):
            found = texts([one for one in lines if one not in groups] if groups else lines, extra)
        yield from found
        for group in groups:
            yield from self.lines_of(str(group.get("include-group")), (*within, name))


@contextlib.contextmanager
def readable(file: str) -> Iterator[None]:
    """Whatever is in a file, one line tells what is wrong with it."""
    try:
        yield
    except (ValueError, SyntaxError, configparser.Error, RecursionError) as error:
        said = one_line(str(error), 200)
        raise wrong(f"{file} can't be read: {said}", "correct it; nothing was sent") from None


def table(data: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """What stands below `keys`, empty where nothing does. Raises ValueError for another thing than
    a table."""
    for number, key in enumerate(keys, 1):
        data = {} if data.get(key) is None else data[key]
        if not isinstance(data, dict):
            raise ValueError(f"{'.'.join(keys[:number])} is no table")
    return data


def texts(value: object, name: str) -> list[str]:
    """A list of texts; a single one holds a line each. Raises ValueError for another thing."""
    if value is None or isinstance(value, str):
        return (value or "").splitlines()
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    raise ValueError(f"{name} is no list of texts")


def read_package(project: Path, folder: Path) -> Package:
    """Raises UsageError where it does not say what it needs, or can't be read."""
    if not folder.resolve().is_relative_to(project.resolve()):
        problem = f"{folder} lies outside the project, so it does not go to the server"
        raise wrong(problem, "move it below the project, or name an address")
    place = folder.resolve().relative_to(project.resolve()).as_posix()
    file = PurePosixPath(place, "pyproject.toml").as_posix()
    data = toml_in(folder)
    with readable(file):
        if "project" in data:
            return _standard(folder, place, file, data)
        is_poetrys = "poetry" in table(data, "tool")
    if is_poetrys:
        problem = f"{file} keeps its dependencies in Poetry's own table"
        remedy = "give it a [project] table (Poetry 2 takes one), or name what poetry export wrote"
        raise wrong(problem, remedy)
    if (folder / "setup.cfg").is_file() or (folder / "setup.py").is_file():
        return _setuptools(folder, place)
    if (folder / "pyproject.toml").is_file():
        problem = f"{file} has no [project] table, so it says of no package what it needs"
        raise wrong(problem, "give it one with name, version and dependencies")
    problem = f"{place}: neither pyproject.toml nor setup.cfg or setup.py: no package"
    raise wrong(problem, "name the folder of a package")


def is_package(folder: Path) -> bool:
    return any((folder / name).is_file() for name in INSTALLABLE)


def _standard(folder: Path, place: str, file: str, data: Mapping[str, Any]) -> Package:
    """By pyproject.toml's [project]. What it calls dynamic is setuptools' business."""
    about, dynamic = table(data, "project"), table(data, "tool", "setuptools", "dynamic")
    computed = texts(about.get("dynamic"), "project.dynamic")
    needs = texts(about.get("dependencies"), "project.dependencies")
    if "dependencies" in computed:
        files = _files(table(dynamic, "dependencies"), "dependencies")
        hook = table(data, "tool", "hatch", "metadata", "hooks", "requirements_txt")
        files = files or _files({"file": hook.get("files")}, "files")
        if not files and not ((folder / "setup.py").is_file() or (folder / "setup.cfg").is_file()):
            problem = f"{file}: its dependencies are computed when it is built"
            raise wrong(problem, "list them in [project]")
        needs = files or list(_setuptools(folder, place).needs)

    def extras() -> Mapping[str, Any]:
        found = {
            **table(data, "dependency-groups"),
            **table(data, "project", "optional-dependencies"),
        }
        if "optional-dependencies" in computed:
            told = table(dynamic, "optional-dependencies")
            found |= {name: _files(table(told, name), name) for name in told}
        return found

    return Package(folder, place, file, canonical(str(about.get("name") or "")), needs, extras)


def _files(told: Mapping[str, Any], name: str) -> list[str]:
    return [f"-r {file}" for file in texts(told.get("file"), f"{name}.file")]


def _setuptools(folder: Path, place: str) -> Package:
    """By setup.cfg, and by what setup.py says in so many words."""
    file, cfg = (str(PurePosixPath(place, name)) for name in ("setup.py", "setup.cfg"))
    config = configparser.ConfigParser(interpolation=None)
    if (folder / "setup.cfg").is_file():
        with readable(cfg):
            config.read_string(read_text(folder / "setup.cfg", cfg), cfg)
    with readable(file):
        told = setup_arguments(folder / "setup.py")

    def argument(word: str) -> Any:
        value = told.get(word, told.get("**"))
        if isinstance(value, Unknown):
            problem = f"{file} computes what it needs: {one_line(str(value), 100)}"
            raise wrong(problem, "list it in pyproject.toml's [project]")
        return value

    def extras() -> Mapping[str, Any]:
        has_some = config.has_section("options.extras_require")
        items = config.items("options.extras_require") if has_some else ()
        more = table({"extras_require": argument("extras_require")}, "extras_require")
        return {**{name: _from_cfg(value) for name, value in items}, **more}

    needs = _from_cfg(config.get("options", "install_requires", fallback=""))
    with readable(file):
        needs += texts(argument("install_requires"), "install_requires")
    name = told.get("name") or config.get("metadata", "name", fallback="")
    name = canonical(name) if isinstance(name, str) else ""
    return Package(folder, place, file if told else cfg, name, needs, extras)


def _from_cfg(text: str) -> list[str]:
    """A line each, or those of the files that are named."""
    named = re.fullmatch(r"\s*file:(.*)", text, re.DOTALL)
    return [f"-r {one.strip()}" for one in named[1].split(",")] if named else text.splitlines()
