"""The project's own packages in a run: imported from its own copy of the code, with what an
installation would have added: metadata, entry points, programs."""

import os
import re
import shlex
import shutil
from typing import Any, Dict, Iterable, List, NamedTuple, Sequence

from remote.agent.environments.python_places import lead_to
from remote.agent.root.paths import list_names, read_bytes, remove_file, write_link, write_whole
from remote.agent.shared.local_package import INSTALLABLE, LocalPackage, read_package
from remote.agent.shared.run_records import Asked

MODULES = ".modules"
"""In the run's directory: what is to be found wherever a script lies, and whatever an interpreter
is called."""
PROGRESS = "run_progress.py"
PROGRAM = """#!/bin/sh
'''exec' {python} "$0" "$@"
' '''
import sys
from {module} import {first}
if __name__ == "__main__":
    sys.exit({function}())
"""
"""A shell starts the run's python with it, whose path may be longer than a first line can be."""


class Found(NamedTuple):
    """Folders for PYTHONPATH and for PATH, in order."""

    modules: List[str]
    programs: List[str]


def lay_out_packages(directory: str, asked: Asked) -> Found:
    """Make `.modules`; what an earlier attempt needed, and this one does not, is removed. Hosts
    that share the run's directory may do it at once. Raises ValueError for what is no package."""
    work, folder = os.path.join(directory, "work"), os.path.join(directory, MODULES)
    packages, python = packages_of(work, asked.local), asked.python
    files = {name: text for one in packages for name, text in files_of(one, python).items()}
    links = {name.replace(".", "/"): place for one in packages for name, place in one.links.items()}
    if os.path.isfile(os.path.join(work, PROGRESS)):
        links[PROGRESS] = PROGRESS
    has_name = not python or os.path.exists(os.path.join(os.path.dirname(python), "python"))
    remove_others(folder, [*files, *links, *([] if has_name else ["bin/python"])])
    for name, text in files.items():
        write_file(place_for(folder, name), text.encode("utf-8", "surrogateescape"))
    for name, target in links.items():
        lead(place_for(folder, name), inside(work, target))
    programs = os.path.join(folder, "bin")
    if not has_name:
        lead_to(python, programs, ("python",))
    places = [inside(work, place) for package in packages for place in package.places]
    modules = [*dict.fromkeys(places), *([folder] if files or links else [])]
    return Found(modules, [programs] if os.path.isdir(programs) else [])


def write_file(place: str, data: bytes) -> None:
    """A full disk is no reason not to start again."""
    if read_bytes(place) != data:
        write_whole(place, data, 0o700)


def lead(place: str, target: str) -> None:
    if not os.path.islink(place) or os.readlink(place) != target:
        write_link(place, target)


def packages_of(work: str, local: Iterable[Any]) -> List[LocalPackage]:
    """As run.json names them. An older one names their folders alone, and not the project's."""
    found = list(local)
    if any(isinstance(one, dict) for one in found):
        return [read_package(one) for one in found]
    if any(os.path.isfile(os.path.join(work, name)) for name in INSTALLABLE):
        found.insert(0, ".")
    places = []
    for one in map(str, found):
        source = os.path.join(inside(work, one), "src")
        is_package = os.path.exists(os.path.join(source, "__init__.py"))
        places += [f"{one}/src"] if os.path.isdir(source) and not is_package else []
        places.append(one)
    return [LocalPackage(places, {}, {})]


def files_of(package: LocalPackage, python: str) -> Dict[str, str]:
    """Below `.modules`: programs, and of an installed package's dist-info what importlib.metadata
    reads."""
    scripts = package.scripts if python else {}
    files = {f"bin/{name}": program(python, target) for name, target in scripts.items()}
    if package.name:
        name, version = re.sub(r"[-_.]+", "_", package.name), package.version.replace("-", "_")
        about = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
        files[f"{name}-{version}.dist-info/METADATA"] = about
        files[f"{name}-{version}.dist-info/entry_points.txt"] = "".join(
            f"[{group}]\n" + "".join(f"{name} = {what}\n" for name, what in points.items())
            for group, points in package.entry_points.items()
        )
    return files


def program(python: str, target: str) -> str:
    """`target`: module:function."""
    module, _, function = target.partition(":")
    first = function.split(".")[0]
    return PROGRAM.format(python=shlex.quote(python), module=module, first=first, function=function)


def place_for(folder: str, name: str) -> str:
    place = inside(folder, name)
    os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
    return place


def inside(folder: str, name: str) -> str:
    place = os.path.normpath(os.path.join(folder, name))
    if place != folder and not place.startswith(folder + os.sep):
        raise ValueError(f"not inside the run: {name!r:.80}")
    return place


def remove_others(folder: str, wanted: Sequence[str]) -> None:
    """Another host may be writing: what is not finished is left alone."""
    names = {name for name in wanted if "/" not in name}
    folders = {name.partition("/")[0] for name in wanted if "/" in name}
    for name in list_names(folder):
        place = os.path.join(folder, name)
        if not os.path.isdir(place) or os.path.islink(place):
            if name not in names and not name.endswith(".tmp"):
                remove_file(place)
        elif name in folders:
            inner = [one[len(name) + 1 :] for one in wanted if one.startswith(name + "/")]
            remove_others(place, inner)
        else:
            shutil.rmtree(place, ignore_errors=True)
