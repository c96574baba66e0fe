"""uv.lock: every package with its version, and who needs it under which marker."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from remote.requirements.lines import LOCAL, wrong
from remote.requirements.packages import read_toml

Package = Mapping[str, Any]
# What uv writes of extras that exclude each other, and what says the same to pip.
EXCLUSIVE = re.compile(r"extra (==|!=) '(?:extra|project)-\d+-([^']*)'")
ALWAYS, NEVER = "python_version >= '3'", "python_version < '3'"


def lock_lines(path: Path, extras: Sequence[str]) -> Iterator[str]:
    """As `uv sync --frozen` would install them, without the group dev: pinned, each with its
    hashes. The index that most come from is the server's own choice, the others are named."""
    packages = list(read_toml(path).get("package") or ())
    root = next((one for one in packages if _place(one) == "."), None)
    if root is None:
        raise wrong(f"{path.name} holds no project of this folder", "make it with uv lock")
    for extra in extras:
        if extra not in (root.get("optional-dependencies") or {}):
            raise wrong(f"{path.name} has no extra {extra!r}", "correct remote.requirements")
    chosen = {f"{root['name']}-{extra}" for extra in extras}
    usual = Counter(filter(None, map(_index, packages))).most_common(1)
    indexes = {name for name, _ in usual}
    seen: set[tuple[object, ...]] = set()
    pending = [(root, frozenset[str](), tuple(extras))]
    for package, markers, wanted in pending:
        optional = package.get("optional-dependencies") or {}
        more = [needed for extra in wanted for needed in optional.get(extra) or ()]
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
                    yield _line(one, " and ".join(f"({marker})" for marker in sorted(all_of)))
                    pending.append((one, all_of, inner))
                index = _index(one)
                if "://" in index and index not in indexes:
                    indexes.add(index)
                    is_page = index.endswith(".html")
                    yield f"--{'find-links' if is_page else 'extra-index-url'} {index}"
    yield f"{LOCAL} ."


def _index(package: Package) -> str:
    return str((package.get("source") or {}).get("registry") or "")


def _for_pip(marker: Any, chosen: set[str]) -> str:
    return EXCLUSIVE.sub(
        lambda found: ALWAYS if (found[2] in chosen) is (found[1] == "==") else NEVER,
        str(marker or ""),
    )


def _line(package: Package, marker: str) -> str:
    source, name = package.get("source") or {}, package["name"]
    behind = f" ; {marker}" if marker else ""
    if (place := _place(package)) is not None:
        return f"{LOCAL} {place}"
    if "git" in source:
        address, _, commit = str(source["git"]).partition("#")
        address, _, query = address.partition("?")
        folder = "".join(f"#subdirectory={one}" for one in parse_qs(query).get("subdirectory", ()))
        return f"{name} @ git+{address}@{commit}{folder}{behind}"
    if "url" in source:
        return f"{name} @ {source['url']}{behind}"
    if "path" in source:
        return str(source["path"])  # which is refused like any other path
    files = [*(package.get("wheels") or ()), package.get("sdist") or {}]
    hashes = "".join(f" --hash={file['hash']}" for file in files if file.get("hash"))
    return f"{name}=={package['version']}{behind}{hashes}"


def _place(package: Package) -> str | None:
    """The folder of a package of the project."""
    source = package.get("source") or {}
    kinds = [kind for kind in ("editable", "virtual", "directory") if kind in source]
    return str(source[kinds[0]]) if kinds else None
