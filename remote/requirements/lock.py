"""uv.lock: every package with its version, and who needs it under which marker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from remote.requirements.lines import LOCAL, wrong
from remote.requirements.packages import read_toml

Package = Mapping[str, Any]


def lock_lines(path: Path, extras: Sequence[str]) -> Iterator[str]:
    """As `uv sync --frozen` would install them, without the group dev: pinned, each with its
    hashes."""
    packages = list(read_toml(path).get("package") or ())
    root = next((one for one in packages if _place(one) == "."), None)
    if root is None:
        raise wrong(f"{path.name} holds no project of this folder", "make it with uv lock")
    for extra in extras:
        if extra not in (root.get("optional-dependencies") or {}):
            raise wrong(f"{path.name} has no extra {extra!r}", "correct remote.requirements")
    seen: set[tuple[str, ...]] = set()
    pending = [(root, "", tuple(extras))]
    for package, marker, wanted in pending:
        optional = package.get("optional-dependencies") or {}
        more = [needed for extra in wanted for needed in optional.get(extra) or ()]
        for needed in (*(package.get("dependencies") or ()), *more):
            name, inner = str(needed.get("name")), tuple(needed.get("extra") or ())
            both = _both(marker, str(needed.get("marker") or ""))
            named = [one for one in packages if one.get("name") == name]
            found = [one for one in named if needed.get("version") in (None, one.get("version"))]
            if not found:
                raise wrong(f"{path.name} does not hold {name}", "make it anew with uv lock")
            for one in found:
                key = (name, str(one.get("version")), both, *inner)
                if key not in seen:
                    seen.add(key)
                    yield _line(one, both)
                    pending.append((one, both, inner))
    yield f"{LOCAL} ."


def _line(package: Package, marker: str) -> str:
    source, name = package.get("source") or {}, package["name"]
    behind = f" ; {marker}" if marker else ""
    if (place := _place(package)) is not None:
        return f"{LOCAL} {place}"
    if "git" in source:
        address, _, commit = str(source["git"]).partition("#")
        return f"{name} @ git+{address.split('?')[0]}@{commit}{behind}"
    if "url" in source:
        return f"{name} @ {source['url']}{behind}"
    files = [*(package.get("wheels") or ()), package.get("sdist") or {}]
    hashes = "".join(f" --hash={file['hash']}" for file in files if file.get("hash"))
    return f"{name}=={package['version']}{behind}{hashes}"


def _place(package: Package) -> str | None:
    """The folder of a package of the project."""
    source = package.get("source") or {}
    kinds = [kind for kind in ("editable", "virtual", "directory") if kind in source]
    return str(source[kinds[0]]) if kinds else None


def _both(one: str, other: str) -> str:
    return f"({one}) and ({other})" if one and other and one != other else one or other
