"""What a package of the project itself (`-e .`, `./libs/x`, pyproject.toml) needs.

Such a package is not installed: its code goes with the release and is imported from each run's own
copy. What it needs is read from its metadata here, so a new dependency is a new environment and a
changed line of code is not.
"""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from remote.agent.shared.names import canonical
from remote.errors import UsageError
from remote.requirements.lines import LOCAL, read_text, wrong
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
        return tomllib.loads(read_text(path, path.name))
    except ValueError as error:
        said = one_line(str(error), 200)
        raise wrong(f"{path.name} is no TOML: {said}", "correct it; nothing was sent") from None


def python_bounds(project: Path) -> tuple[str, str]:
    """requires-python of the project's pyproject.toml, and the version in its .python-version;
    empty where they say nothing."""
    try:
        about = read_toml(project / "pyproject.toml").get("project") or {}
    except UsageError:
        about = {}
    asked = "".join(str(about.get("requires-python") or "").split())
    try:
        named = (project / ".python-version").read_text("utf-8", "replace")
    except OSError:
        named = ""
    preferred = re.match(r"(?:cpython-?)?(3\.\d+(?:\.\d+)?)\s*$", named, re.MULTILINE)
    return asked if BOUNDS.fullmatch(asked) else "", preferred[1] if preferred else ""


def package_lines(project: Path, folder: Path, extras: Sequence[str]) -> Iterator[str]:
    """What a package of the project needs, and its folder. Raises UsageError where its metadata
    does not say it."""
    if not folder.resolve().is_relative_to(project.resolve()):
        problem = f"{folder} lies outside the project, so it does not go to the server"
        raise wrong(problem, "move it below the project, or name an address")
    shown = folder.resolve().relative_to(project.resolve()).as_posix()
    pyproject = folder / "pyproject.toml"
    data = read_toml(pyproject) if pyproject.is_file() else {}
    tools = data.get("tool") or {}
    where = ["."]
    if "project" in data:
        setuptools = tools.get("setuptools") or {}
        yield from _project_lines(data, setuptools, folder.name)
        for extra in extras:
            yield from _extra_lines(data, extra)
        packages = setuptools.get("packages") or {}
        if isinstance(packages, dict):
            where = (packages.get("find") or {}).get("where") or where
    elif "poetry" in tools:
        problem = f"{shown}/pyproject.toml keeps its dependencies in Poetry's own table"
        remedy = "give it a [project] table (Poetry 2 takes one), or name what poetry export wrote"
        raise wrong(problem, remedy)
    elif (folder / "setup.cfg").is_file() or (folder / "setup.py").is_file():
        yield from _setuptools_lines(folder, extras, shown)
    else:
        problem = f"{shown}: neither pyproject.toml nor setup.cfg or setup.py: no package"
        raise wrong(problem, "name the folder of a package")
    yield from (f"{LOCAL} {PurePosixPath(shown, part)}" for part in where)


def _project_lines(
    data: Mapping[str, Any], setuptools: Mapping[str, Any], name: str
) -> Iterator[str]:
    if "dependencies" in (data["project"].get("dynamic") or ()):
        files = setuptools.get("dynamic", {}).get("dependencies", {}).get("file") or ()
        if not files:
            problem = f"{name}: its dependencies are computed when it is built"
            raise wrong(problem, "list them in [project]")
        yield from (f"-r {file}" for file in ([files] if isinstance(files, str) else files))
    yield from data["project"].get("dependencies") or ()


def _extra_lines(data: Mapping[str, Any], extra: str) -> Iterator[str]:
    """Of an extra, or a dependency group; they may name others of their kind."""
    about = data["project"]
    tables = (data.get("dependency-groups"), about.get("optional-dependencies"))
    known = {canonical(name): lines for table in tables for name, lines in (table or {}).items()}
    if canonical(extra) not in known:
        problem = f"pyproject.toml has no extra {extra!r}; it has {', '.join(known) or 'none'}"
        raise wrong(problem, "correct remote.requirements")
    for line in known[canonical(extra)]:
        group = line.get("include-group") if isinstance(line, dict) else None
        name, inner = ("", (str(group),)) if group else split_extras(line)
        if group or canonical(name) == canonical(str(about.get("name"))):
            for one in inner:
                yield from _extra_lines(data, one)
        else:
            yield line


def _setuptools_lines(folder: Path, extras: Sequence[str], shown: str) -> Iterator[str]:
    config = configparser.ConfigParser(interpolation=None)
    config.read(folder / "setup.cfg", encoding="utf-8-sig")
    lines = config.get("options", "install_requires", fallback="").splitlines()
    has_extras = config.has_section("options.extras_require")
    optional: dict[str, Any] = dict(config.items("options.extras_require")) if has_extras else {}
    try:
        told = _setup_arguments(folder / "setup.py")
        lines += ast.literal_eval(told.get("install_requires", ast.List([])))
        optional |= ast.literal_eval(told.get("extras_require", ast.Dict([], [])))
    except SyntaxError as error:
        problem = f"setup.py can't be read: {error.msg}"
        raise wrong(problem, "correct it; nothing was sent") from None
    except ValueError:
        problem = f"{shown}/setup.py computes what it needs"
        raise wrong(problem, "list it in pyproject.toml's [project]") from None
    for extra in extras:
        if extra not in optional:
            raise wrong(f"{shown} has no extra {extra!r}", "correct the requirements")
        more = optional[extra]
        lines += more.splitlines() if isinstance(more, str) else more
    yield from (line.strip() for line in lines if line.strip())


def _setup_arguments(path: Path) -> dict[str, ast.expr]:
    """The keywords of the call of setup(); empty without a setup.py."""
    tree = ast.parse(path.read_bytes() if path.is_file() else b"")
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "setup"
    ]
    return {word.arg: word.value for call in calls for word in call.keywords if word.arg}
