"""Where the modules of a package of the project lie: read from the settings of what builds it.
Nothing is built or installed: each run imports it from its own copy."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from remote.agent.shared.local_package import INSTALLABLE, LocalPackage
from remote.agent.shared.names import canonical
from remote.errors import UsageError
from remote.requirements.build_settings import Settings, pairs_of, table, texts
from remote.requirements.installed import compiled_in, entry_points_of, version_of
from remote.requirements.lines import wrong
from remote.screen.text import one_line

FIND_PACKAGES = re.compile(r"find(?:_namespace)?_packages\(\s*(?:where\s*=\s*)?['\"]([^'\"]+)['\"]")
"""In setup.py: where packages are looked for."""
Pairs = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Found:
    """A package in `folder`, `.` for the project itself; `shown`: for people. `built`: what
    builds a part of it that is not built there; empty where there is none."""

    folder: str
    shown: str
    package: LocalPackage
    built: str = ""


def find_packages(project: Path, folders: Sequence[str]) -> list[Found]:
    """`folders`: as the requirements name them. The project itself is one where it can be
    installed, whether it is asked for or not. Raises UsageError where its settings lead nowhere."""
    folders = list(dict.fromkeys(map(posixpath.normpath, folders)))
    found = [package_of(Settings(project, folder)) for folder in folders]
    if "." in folders or not any((project / name).is_file() for name in INSTALLABLE):
        return found
    try:
        return [dataclasses.replace(package_of(Settings(project, ".")), built=""), *found]
    except UsageError:
        return [Found(".", "", LocalPackage(default_places(project, "."), {}, {})), *found]


def unsent(project: Path, found: Sequence[Found], sent: Collection[str]) -> list[str]:
    """Modules of these packages that are not among the files that are sent. Raises UsageError for a
    package of which nothing is."""
    missing: dict[str, None] = {}
    for one in found:
        places = [*one.package.places, *one.package.links.values()]
        for place in places:
            prefix = "" if place == "." else f"{place}/"
            modules = [prefix + name for name in modules_in(project / place)]
            # What lies beside pyproject.toml is a script rather than a module.
            inner = [path for path in modules if place != one.folder or "/" in path[len(prefix) :]]
            missing |= dict.fromkeys(path for path in inner if path not in sent)
            if modules:
                require_sent(place, sent)
    return list(missing)


def require_sent(place: str, sent: Collection[str]) -> None:
    """Raises UsageError where nothing of a file or a folder is sent."""
    prefix = "" if place == "." else f"{place}/"
    if place not in sent and not any(path.startswith(prefix) for path in sent):
        problem = f"{place} is not sent: a .gitignore or .git/info/exclude leaves it out"
        raise wrong(problem, "take it out there, or name it in remote.include")


def modules_in(folder: Path, within: str = "") -> Iterator[str]:
    """Those beside each other in it, and all of the packages in it."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if entry.name.endswith(".py") and entry.is_file():
                yield within + entry.name
            elif entry.is_dir(follow_symlinks=False) and Path(entry, "__init__.py").is_file():
                yield from modules_in(Path(entry), f"{within}{entry.name}/")


def default_places(folder: Path, shown: str, name: str = "") -> list[str]:
    """src/ where modules lie in it and it is none itself; where these are no packages, or the
    project's own lies beside it, both."""
    source = folder / "src"
    is_module = (source / "__init__.py").exists()
    if not source.is_dir() or is_module or not any(source.rglob("*.py")):
        return [shown]
    module = canonical(name).replace("-", "_") or "."
    has_packages = any(source.glob("*/__init__.py"))
    is_beside = not (source / module).is_dir() and (folder / module / "__init__.py").exists()
    places = [PurePosixPath(shown, "src").as_posix()]
    return places if has_packages and not is_beside else [*places, shown]


def package_of(settings: Settings) -> Found:
    if settings.below.startswith(("..", "/")):
        problem = f"{settings.shown} lies outside the project, so it does not go to the server"
        raise wrong(problem, "move it below the project, or name an address")
    if not settings.folder.is_dir():
        raise wrong(f"{settings.shown}: there is no such folder", "correct the requirements")
    try:
        return read_all(settings)
    except (OSError, ValueError) as error:  # of names that no file can have
        problem = f"{settings.shown}: its settings can't be followed: {one_line(str(error), 200)}"
        raise wrong(problem, "correct them; nothing was sent") from None


def read_all(settings: Settings) -> Found:
    places: list[str] = []
    links: dict[str, str] = {}
    for module, folder in told_places(settings):
        parts, path = tuple(module.split(".")) if module else (), existing(settings, folder)
        if path.suffix == ".py":
            places.append(path.parent.as_posix())
        elif path.parts[len(path.parts) - len(parts) :] == parts:
            places.append(PurePosixPath(*path.parts[: len(path.parts) - len(parts)]).as_posix())
        else:
            links[module] = path.as_posix()
    if not places and not links:
        places = default_places(settings.folder, settings.below, settings.name)
    lies = [*dict.fromkeys(places)]
    version = version_of(settings, [*lies, *links.values()]) if settings.name else "0"
    package = LocalPackage(lies, links, entry_points_of(settings), settings.name, version)
    return Found(settings.below, settings.shown, package, compiled_in(settings))


def existing(settings: Settings, folder: str) -> PurePosixPath:
    path = PurePosixPath(os.path.normpath(f"{settings.below}/{folder}").replace(os.sep, "/"))
    place, shown = settings.project / path, one_line(str(path), 100)
    if folder.startswith("/") or "\0" in folder or path.parts[:1] == ("..",):
        problem = f"{settings.shown}: its modules lie in {shown}, outside the project"
        raise wrong(problem, "move them below the project")
    problem = f"{settings.shown}: its settings say that modules lie in {shown}, which is not there"
    if place.is_dir():
        problem = f"{settings.shown}: its settings say that modules lie in {shown}, and none does"
    if not place.is_file() and not any(place.rglob("*.py")):
        raise wrong(problem, "correct them; nothing was sent")
    return path


# -- where modules lie: (module, its folder), or ("", a folder with modules)


def told_places(settings: Settings) -> Pairs:
    """Of whatever builds it: a project has settings of one alone."""
    yield from setuptools_places(settings)
    for keys in (("hatch", "build"), ("hatch", "build", "targets", "wheel")):
        yield from hatch_places(settings, table(settings.toml, "tool", *keys))
    poetry = table(settings.toml, "tool", "poetry").get("packages")
    for one in poetry if isinstance(poetry, list) else ():
        yield from (("", place) for place in texts(table(one).get("from", ".")))
    for name, *where in (
        ("package-dir", "pdm", "build"),
        ("module-root", "uv", "build-backend"),
        ("python-source", "maturin"),
    ):
        found = texts(table(settings.toml, "tool", *where).get(name))
        yield from (("", place or ".") for place in found)
    packages = table(settings.toml, "tool", "scikit-build", "wheel").get("packages")
    yield from ((PurePosixPath(path).name, path) for path in texts(packages))


def setuptools_places(settings: Settings) -> Pairs:
    tool = table(settings.toml, "tool", "setuptools")
    folders = table(tool, "package-dir") or pairs_of(settings.option("options", "package_dir"))
    folders = folders or table(settings.setup.get("package_dir"))
    found = texts(table(tool, "packages", "find").get("where"))
    found = found or settings.option("options.packages.find", "where").replace(",", " ").split()
    found = found or FIND_PACKAGES.findall(settings.read("setup.py"))
    told = ((name, place) for name, place in folders.items() if isinstance(place, str))
    yield from ((name, place or ".") for name, place in told)
    if "" in folders or ("package_dir" in settings.setup and not folders):
        return
    names = ("packages", "py-modules", "py_modules")
    given = {*tool, *settings.setup, *(x for x in names if settings.option("options", x))}
    if not found and given & {*names}:
        found = ["."]
    yield from (("", place) for place in found)


def hatch_places(settings: Settings, build: Mapping[str, Any]) -> Pairs:
    yield from ((PurePosixPath(path).name, path) for path in texts(build.get("packages")))
    sources = build.get("sources")
    yield from (("", place) for place in [*texts(sources), *texts(build.get("dev-mode-dirs"))])
    for path, name in (table(sources) | table(build.get("force-include"))).items():
        if isinstance(name, str) and (settings.folder / path).is_dir():
            yield name.strip("/").replace("/", "."), path
