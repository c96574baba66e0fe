"""uv.lock: every package with its version, and who needs it under which marker."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from remote.agent.shared.names import canonical
from remote.requirements.lines import LOCAL, with_markers, wrong
from remote.requirements.packages import read_package, read_toml, readable, table, toml_in

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Package = Mapping[str, Any]
# What uv writes of extras that exclude each other, and what says the same to pip.
EXCLUSIVE = re.compile(r"extra (==|!=) '(?:extra|project|group)-\d+-([^']*)'")
SOURCES = {"git", "url", "path", "directory", "editable", "virtual"}
ALWAYS, NEVER = "python_version >= '3'", "python_version < '3'"


def lock_lines(project: Path, path: Path, extras: Sequence[str]) -> Iterator[str]:
    """As `uv sync --frozen` would install them, with the groups that it installs by itself: pinned,
    each with its hashes. The index that most come from is the server's own choice, the others are
    named. Raises UsageError for a lock that is older than its pyproject.toml."""
    data = read_toml(path)
    base = Path(os.path.relpath(path.parent, project)).as_posix()
    try:
        for line in _lines(project, path, data, extras):
            place = line.removeprefix(f"{LOCAL} ")
            yield line if place == line else f"{LOCAL} {PurePosixPath(base, place)}"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{path.name} is not as uv writes it ({type(error).__name__}: {error})"
        raise wrong(problem, "make it anew with uv lock") from None


def _lines(
    project: Path, path: Path, data: Mapping[str, Any], extras: Sequence[str]
) -> Iterator[str]:
    packages = list(data.get("package") or ())
    root = next((one for one in packages if _place(one) == "."), None)
    if root is None:
        raise wrong(f"{path.name} holds no project of this folder", "make it with uv lock")
    for extra in extras:
        if extra not in (known := _optional(root)):
            problem = f"{path.name} has no extra {extra!r}; it has {', '.join(known) or 'none'}"
            raise wrong(problem, "correct remote.requirements")
    wanted = tuple(dict.fromkeys([*_usual_groups(path.parent, root), *extras]))
    _refuse_old(project, path, root, wanted)
    chosen = {f"{root['name']}-{extra}" for extra in wanted}
    usual = Counter(filter(None, map(_index, packages))).most_common(1)
    indexes = {name for name, _ in usual}
    seen: set[tuple[object, ...]] = set()
    pending = [(root, frozenset[str](), wanted)]
    for package, markers, asked in pending:
        more = [needed for extra in asked for needed in _optional(package).get(extra) or ()]
        for needed in (*(package.get("dependencies") or ()), *more):
            name, inner = str(needed.get("name")), tuple(needed.get("extra") or ())
            all_of = markers | set(filter(None, [_for_pip(needed.get("marker"), chosen)]))
            named = [one for one in packages if one.get("name") == name]
            found = [one for one in named if needed.get("version") in (None, one.get("version"))]
            if not found:
                raise wrong(f"{path.name} does not hold {name}", "make it anew with uv lock")
            for one in found:
                key = (name, one.get("version"), all_of, inner)
                if key not in seen:
                    seen.add(key)
                    yield with_markers(_line(one), all_of)
                    pending.append((one, all_of, inner))
                index = _index(one)
                if "://" in index and index not in indexes:
                    indexes.add(index)
                    is_page = index.endswith(".html")
                    yield f"--{'find-links' if is_page else 'extra-index-url'} {index}"
    yield f"{LOCAL} ."


def _optional(package: Package) -> dict[str, Any]:
    """Groups and extras."""
    return {**table(package, "dev-dependencies"), **table(package, "optional-dependencies")}


def _usual_groups(folder: Path, root: Package) -> list[str]:
    groups = table(root, "dev-dependencies")
    named = table(toml_in(folder), "tool", "uv").get("default-groups", ["dev"])
    return [name for name in groups if named == "all" or name in named]


def _refuse_old(project: Path, path: Path, root: Package, wanted: Sequence[str]) -> None:
    """What pyproject.toml asks for since the lock was made is not in it."""
    from packaging.requirements import Requirement

    metadata = table(root, "metadata")
    if not metadata or "project" not in toml_in(path.parent):
        return
    about = read_package(project, path.parent)
    known = {canonical(name) for name in about.extras()}
    more = [line for one in wanted if canonical(one) in known for line in about.lines_of(one)]
    held = list(metadata.get("requires-dist") or ())
    always = [one for one in held if "extra ==" not in one.get("marker", "")]
    groups = [one for lines in table(metadata, "requires-dev").values() for one in lines]
    for lines, locked in ((about.needs, always), (more, held + groups)):
        with readable(about.file):
            needs = [Requirement(line) for line in lines if not line.startswith("-")]
        for needed in needs:
            if canonical(needed.name) != about.name and not any(_holds(x, needed) for x in locked):
                problem = f"{path.name} is older than pyproject.toml, which asks for {needed}"
                raise wrong(problem, "make it anew with uv lock")


def _holds(locked: Package, needed: Requirement) -> bool:
    from packaging.specifiers import SpecifierSet

    same = SpecifierSet(locked.get("specifier", "")) == needed.specifier
    # Where it comes from a folder or an address, uv keeps no version.
    return locked["name"] == canonical(needed.name) and (same or bool(SOURCES & locked.keys()))


def _index(package: Package) -> str:
    return str((package.get("source") or {}).get("registry") or "")


def _for_pip(marker: Any, chosen: set[str]) -> str:
    return EXCLUSIVE.sub(
        lambda found: ALWAYS if (found[2] in chosen) is (found[1] == "==") else NEVER,
        str(marker or ""),
    )


def _line(package: Package) -> str:
    source, name = package.get("source") or {}, package["name"]
    if (place := _place(package)) is not None:
        return f"{LOCAL} {place}"
    if "git" in source:
        address, _, commit = str(source["git"]).partition("#")
        address, _, query = address.partition("?")
        folder = "".join(f"#subdirectory={one}" for one in parse_qs(query).get("subdirectory", ()))
        return f"{name} @ git+{address}@{commit}{folder}"
    if "url" in source:
        return f"{name} @ {source['url']}"
    if "path" in source:
        return str(source["path"])  # which is refused like any other path
    files = [*(package.get("wheels") or ()), package.get("sdist") or {}]
    hashes = "".join(f" --hash={file['hash']}" for file in files if file.get("hash"))
    return f"{name}=={package['version']}{hashes}"


def _place(package: Package) -> str | None:
    """The folder of a package of the project."""
    source = package.get("source") or {}
    kinds = [kind for kind in ("editable", "virtual", "directory") if kind in source]
    return str(source[kinds[0]]) if kinds else None
