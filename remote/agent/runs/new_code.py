"""Other code for a run that goes on: laid over its copy, beside what the run has made itself."""

import os
import shutil
from typing import Dict, Tuple

from remote.agent.releases.releases import read_manifest, require_release
from remote.agent.root.paths import Layout, place_in
from remote.agent.run_files.outputs import is_unchanged

Code = Dict[str, Tuple[int, int, str]]


def take_new_code(layout: Layout, directory: str, before: str, tree: str, attempt: int) -> None:
    """What differs between the two releases is replaced or removed. A file of these that the run
    has written itself stays as NAME.attempt-N; `source-N/` is the code of the attempts up to N.

    Repeating it is harmless.
    """
    old, new = code_of(layout, before), code_of(layout, tree)
    require_release(layout, tree)
    keep_source(layout, directory, before, attempt)
    changed = [path for path in {*old, *new} if old.get(path) != new.get(path)]
    work = os.path.join(directory, "work")
    for path in changed:
        make_way(place_in(work, path), path, (old, new), attempt)
    for path in sorted(new.keys() & set(changed)):
        place = place_in(work, path)
        if not os.path.lexists(place):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            source = place_in(layout.release(tree), path)
            shutil.copy2(source, place, follow_symlinks=False)


def code_of(layout: Layout, tree: str) -> Code:
    return {path: (mode, size, sha256) for path, mode, size, sha256 in read_manifest(layout, tree)}


def keep_source(layout: Layout, directory: str, before: str, attempt: int) -> None:
    kept = os.path.join(directory, f"source-{attempt}")
    if os.path.isdir(layout.release(before)) and not os.path.isdir(kept):
        aside = os.path.join(directory, "tmp", f"source-{attempt}")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(layout.release(before), aside, symlinks=True)
        os.rename(aside, kept)


def make_way(place: bytes, path: str, codes: Tuple[Code, Code], attempt: int) -> None:
    """Unless it is there already as it is to be."""
    old, new = codes
    try:
        status = os.lstat(place)
    except OSError:
        return

    def stands(code: Code) -> bool:
        return path in code and is_unchanged(os.fsdecode(place), status, code[path], (0, 0))

    if stands(new):
        return
    if stands(old):
        os.unlink(place)
    else:
        os.rename(place, place + f".attempt-{attempt}".encode())
