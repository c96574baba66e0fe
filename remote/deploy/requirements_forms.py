"""What remote.requirements may name: a requirements file, pyproject.toml with extras, or uv.lock.
All become lines as pip takes them.

A package of the project itself (`-e .`, `./libs/x`) is not installed: its code goes with the
release and is imported from each run's own copy. What it needs is read from its metadata here, so a
new dependency is a new environment and a changed line of code is not.
"""

from __future__ import annotations

import ast
import codecs
import configparser
import locale
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from remote.errors import UsageError
from remote.screen.text import one_line

LOCAL = "--local-package"
"""In the text of requirements: a folder below the project whose package runs import from their own
copy."""


CONDA = "--conda"
"""In the text of requirements: a line of environment.yml."""


def split_extras(text: str) -> tuple[str, tuple[str, ...]]:
    """`pyproject.toml[train,dev]` → the name, and the extras."""
    found = re.fullmatch(r"(.*?)\[([^\[\]]*)\]", text.strip())
    if not found:
        return text.strip(), ()
    return found[1].strip(), tuple(part.strip() for part in found[2].split(",") if part.strip())


def local_packages(text: str) -> list[str]:
    """The folders of the project's own packages in the text of requirements; `.` is the project
    itself."""
    return list(
        dict.fromkeys(
            line[len(LOCAL) :].strip() for line in text.splitlines() if line.startswith(LOCAL + " ")
        )
    )


def decode(data: bytes) -> str:
    """As pip reads it: by its mark (PowerShell writes UTF-16), by a line `# -*- coding: … -*-`, as
    UTF-8, by the locale; else GB18030."""
    marks = (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    )
    for mark, encoding in marks:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    named = re.search(rb"coding[:=]\s*([-\w.]+)", b"\n".join(data.split(b"\n")[:2]))
    for encoding in (
        *([named[1].decode()] if named else []),
        "utf-8",
        locale.getpreferredencoding(False),
        "gb18030",
    ):
        try:
            return data.decode(encoding)
        except (LookupError, ValueError):
            continue
    raise ValueError("its encoding is not known")


def read_toml(path: Path) -> dict[str, Any]:
    """Raises UsageError where it can't be read."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        remedy = "set remote.requirements to your file, or to none"
        raise _wrong(f"{path.name} can't be read: {error.strerror}", remedy) from None
    except ValueError as error:
        raise _wrong(
            f"{path.name} is no TOML: {one_line(str(error), 200)}", "correct it; nothing was sent"
        ) from None


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
    is_bound = re.fullmatch(r"(,?([<>=!]=?|~=)\d+(\.\d+)*(\.\*)?)+", asked)
    return asked if is_bound else "", preferred[1] if preferred else ""


def package_lines(project: Path, folder: Path, extras: Sequence[str]) -> Iterator[str]:
    """What a package of the project needs, and its folder. Raises UsageError where its metadata
    does not say it."""
    if not folder.resolve().is_relative_to(project.resolve()):
        raise _wrong(
            f"{folder} lies outside the project, so it does not go to the server",
            "move it below the project, or name an address",
        )
    shown = folder.resolve().relative_to(project.resolve()).as_posix()
    if (folder / "pyproject.toml").is_file():
        data = read_toml(folder / "pyproject.toml")
        if "project" in data:
            yield from _pyproject_lines(folder, data, extras)
            find = ((data.get("tool") or {}).get("setuptools") or {}).get("packages") or {}
            where = (find.get("find") or {}).get("where") if isinstance(find, dict) else None
            yield from (f"{LOCAL} {PurePosixPath(shown, part)}" for part in where or ["."])
            return
        if "poetry" in (data.get("tool") or {}):
            remedy = (
                "give it a [project] table (Poetry 2 takes one), or name a file that poetry export"
                " wrote"
            )
            raise _wrong(
                f"{shown}/pyproject.toml keeps its dependencies in Poetry's own table", remedy
            )
    if (folder / "setup.cfg").is_file() or (folder / "setup.py").is_file():
        yield from _setuptools_lines(folder, extras, shown)
        yield f"{LOCAL} {shown}"
        return
    raise _wrong(
        f"{shown}: neither pyproject.toml nor setup.cfg or setup.py: no package",
        "name the folder of a package",
    )


def _pyproject_lines(folder: Path, data: Mapping[str, Any], extras: Sequence[str]) -> Iterator[str]:
    about = data["project"]
    dynamic = about.get("dynamic") or ()
    if "dependencies" in dynamic:
        found = (
            ((data.get("tool") or {}).get("setuptools") or {})
            .get("dynamic", {})
            .get("dependencies", {})
            .get("file")
        )
        for name in [found] if isinstance(found, str) else found or ():
            yield f"-r {name}"
        if not found:
            raise _wrong(
                f"{folder.name}: its dependencies are computed when it is built",
                "list them in [project]",
            )
    yield from about.get("dependencies") or ()
    optional = {
        _canonical(name): lines
        for name, lines in (about.get("optional-dependencies") or {}).items()
    }
    groups = {
        _canonical(name): lines for name, lines in (data.get("dependency-groups") or {}).items()
    }
    for extra in extras:
        lines = optional.get(_canonical(extra), groups.get(_canonical(extra)))
        if lines is None:
            known = ", ".join([*optional, *groups]) or "none"
            raise _wrong(
                f"pyproject.toml has no extra {extra!r}; it has {known}",
                "correct remote.requirements",
            )
        for line in lines:
            if isinstance(line, dict):
                yield from _pyproject_lines(
                    folder, {**data, "project": {}}, [str(line.get("include-group"))]
                )
                continue
            name, inner = split_extras(line)
            if _canonical(name) == _canonical(str(about.get("name"))):
                yield from _pyproject_lines(
                    folder, {**data, "project": {**about, "dependencies": [], "dynamic": []}}, inner
                )
            else:
                yield line


def _setuptools_lines(folder: Path, extras: Sequence[str], shown: str) -> Iterator[str]:
    config = configparser.ConfigParser(interpolation=None)
    config.read(folder / "setup.cfg", encoding="utf-8-sig")
    lines = config.get("options", "install_requires", fallback="").splitlines()
    optional = (
        dict(config.items("options.extras_require"))
        if config.has_section("options.extras_require")
        else {}
    )
    if (folder / "setup.py").is_file():
        found = _setup_arguments(folder / "setup.py")
        try:
            lines += (
                ast.literal_eval(found["install_requires"]) if "install_requires" in found else []
            )
            optional |= (
                ast.literal_eval(found["extras_require"]) if "extras_require" in found else {}
            )
        except ValueError:
            raise _wrong(
                f"{shown}/setup.py computes what it needs", "list it in pyproject.toml's [project]"
            ) from None
    for extra in extras:
        if extra not in optional:
            raise _wrong(f"{shown} has no extra {extra!r}", "correct the requirements")
        more = optional[extra]
        lines += more.splitlines() if isinstance(more, str) else more
    yield from (line.strip() for line in lines if line.strip())


def _setup_arguments(path: Path) -> dict[str, ast.expr]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise _wrong(
            f"{path.name} can't be read: {error.msg}", "correct it; nothing was sent"
        ) from None
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "setup"
    ]
    return {word.arg: word.value for call in calls for word in call.keywords if word.arg}


class Lock:
    """uv.lock: every package with its version, and who needs it under which marker."""

    def __init__(self, path: Path) -> None:
        self._path = path
        data = read_toml(path)
        self._packages: dict[str, list[Mapping[str, Any]]] = {}
        for package in data.get("package") or ():
            self._packages.setdefault(str(package.get("name")), []).append(package)
        roots = [one for many in self._packages.values() for one in many if _place(one) == "."]
        if not roots:
            raise _wrong(f"{path.name} holds no project of this folder", "make it with uv lock")
        self._root = roots[0]

    def lines(self, extras: Sequence[str]) -> Iterator[str]:
        """As `uv sync --frozen` would install them, without the group dev: pinned, each with its
        hashes."""
        seen: set[tuple[str, str, str]] = set()
        pending = [(self._root, "", tuple(extras))]
        while pending:
            package, marker, wanted = pending.pop(0)
            for needed in self._needs(package, wanted):
                both = _both(marker, str(needed.get("marker") or ""))
                for found in self._found(needed):
                    key = (
                        str(found["name"]),
                        str(found.get("version")),
                        both + ",".join(needed.get("extra") or ()),
                    )
                    if key in seen:
                        continue
                    seen.add(key)
                    yield self._line(found, both)
                    pending.append((found, both, tuple(needed.get("extra") or ())))
        yield f"{LOCAL} ."

    def _needs(self, package: Mapping[str, Any], extras: Sequence[str]) -> list[Mapping[str, Any]]:
        needed = list(package.get("dependencies") or ())
        optional = package.get("optional-dependencies") or {}
        for extra in extras:
            if extra not in optional and package is self._root:
                raise _wrong(
                    f"{self._path.name} has no extra {extra!r}", "correct remote.requirements"
                )
            needed += optional.get(extra) or ()
        return needed

    def _found(self, needed: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        many = self._packages.get(str(needed.get("name"))) or []
        exact = [one for one in many if needed.get("version") in (None, one.get("version"))]
        if not exact:
            raise _wrong(
                f"{self._path.name} does not hold {needed.get('name')}", "make it anew with uv lock"
            )
        return exact

    def _line(self, package: Mapping[str, Any], marker: str) -> str:
        source, name = package.get("source") or {}, package["name"]
        behind = f" ; {marker}" if marker else ""
        if _place(package) is not None:
            return f"{LOCAL} {_place(package)}"
        if "git" in source:
            address, _, commit = str(source["git"]).partition("#")
            return f"{name} @ git+{address.split('?')[0]}@{commit}{behind}"
        if "url" in source:
            return f"{name} @ {source['url']}{behind}"
        files = [
            *(package.get("wheels") or ()),
            *([package["sdist"]] if "sdist" in package else []),
        ]
        hashes = "".join(f" --hash={file['hash']}" for file in files if file.get("hash"))
        return f"{name}=={package['version']}{behind}{hashes}"


def _place(package: Mapping[str, Any]) -> str | None:
    source = package.get("source") or {}
    found = next(
        (source[kind] for kind in ("editable", "virtual", "directory") if kind in source), None
    )
    return None if found is None else str(found)


def _both(one: str, other: str) -> str:
    return f"({one}) and ({other})" if one and other and one != other else one or other


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _wrong(message: str, remedy: str) -> UsageError:
    return UsageError(message, step="requirements", remedy=remedy)
