"""What the installation of a package of the project would add to its modules: its version, programs
and entry points, and what would be compiled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from remote.agent.shared.names import canonical
from remote.requirements.build_settings import Settings, pairs_of, table, texts
from remote.requirements.lines import wrong
from remote.screen.text import one_line

POINT = re.compile(r"[\w.]+(:[\w.]+)?")
COMPILERS = ("maturin", "scikit_build_core", "mesonpy")
COMPILED = ("ext_modules", "cffi_modules", "rust_extensions", "ext-modules")
VERSION_FILES = ("VERSION", "VERSION.txt", "version.txt")


def version_of(settings: Settings, places: Sequence[str]) -> str:
    """As it is normalized; 0 where it is computed otherwise."""
    found = next(filter(None, told_versions(settings, places)), "0")
    if re.fullmatch(r"\d+(\.\d+)*", found):
        return found
    from packaging.version import InvalidVersion, Version

    try:
        return str(Version(found))
    except InvalidVersion:
        return "0"


def told_versions(settings: Settings, places: Sequence[str]) -> Iterator[str]:
    tool = table(settings.toml, "tool")
    for about in (table(settings.toml, "project"), table(tool, "poetry")):
        yield from texts(about.get("version"))
    dynamic = table(tool, "setuptools", "dynamic", "version")
    kind, _, value = settings.option("metadata", "version").partition(":")
    attributes = texts(dynamic.get("attr")) + ([value.strip()] if kind == "attr" else [])
    files = texts(dynamic.get("file")) + ([value.strip()] if kind == "file" else [])
    for attribute in attributes:
        module, _, name = attribute.rpartition(".")
        yield assigned(module_files(settings, module, places), re.escape(name))
    yield from map(settings.read, files)
    yield "" if value else kind
    yield from texts(settings.setup.get("version"))
    for backend in ("hatch", "pdm"):
        paths = texts(table(tool, backend, "version").get("path"))
        yield assigned([settings.folder / path for path in paths], "(?i:__version__|version)")
    yield from texts(table(settings.cargo, "package").get("version"))
    module = canonical(settings.name).replace("-", "_")
    for named in [*texts(table(tool, "flit", "module").get("name")), module]:
        yield assigned(module_files(settings, named, places), "__version__")
    yield from map(settings.read, VERSION_FILES)


def module_files(settings: Settings, module: str, places: Sequence[str]) -> list[Path]:
    """`places`: folders, or the module itself."""
    path = module.replace(".", "/")
    _, _, rest = path.partition("/")
    stems = [settings.project / place / one for place in places for one in (path, rest or ".")]
    return [file for stem in stems for file in (stem / "__init__.py", Path(f"{stem}.py"))]


def assigned(files: Sequence[Path], name: str) -> str:
    """The text that a module gives to a name, read without importing it."""
    for file in filter(Path.is_file, files):
        text = file.read_text("utf-8", "replace")
        line = rf"^(?:\w+\s*=\s*)*{name}\b[^=\n]*=(?:\s*\w+\s*=)*\s*(['\"])v?(.+?)\1"
        if found := re.search(line, text, re.MULTILINE):
            return found[2]
    return ""


def entry_points_of(settings: Settings) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for group, points in told_points(settings):
        for name, what in points.items():
            target = re.sub(r"\[.*", "", str(what)).replace(" ", "")
            is_script = group in ("console_scripts", "gui_scripts")
            fits = POINT.fullmatch(target) and (":" in target or not is_script)
            if not fits or re.search(r"[/=\n\0]", name) or not name.strip("."):
                shown = f"{one_line(name, 80)} = {what!r:.80}"
                problem = f"{settings.shown}: {group}: {shown} is no module:function"
                raise wrong(problem, "correct it; nothing was sent")
            found.setdefault(group, {})[name] = target
    return found


def told_points(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    about, poetry = table(settings.toml, "project"), table(settings.toml, "tool", "poetry")
    yield "console_scripts", table(about, "scripts")
    yield "gui_scripts", table(about, "gui-scripts")
    scripts = {
        name: table(what).get("reference", table(what).get("callable")) or what
        for name, what in table(poetry, "scripts").items()
        if table(what).get("type") != "file"
    }
    yield "console_scripts", scripts
    for groups in (table(about, "entry-points"), table(poetry, "plugins")):
        yield from ((group, table(points)) for group, points in groups.items())
    if settings.config.has_section("options.entry_points"):
        for group, text in settings.config.items("options.entry_points"):
            yield group, pairs_of(text)
    told = settings.setup.get("entry_points")
    for group, lines in (ini_groups(told) if isinstance(told, str) else table(told)).items():
        text = lines if isinstance(lines, str) else "\n".join(texts(lines))
        yield group, pairs_of(text)


def compiled_in(settings: Settings) -> str:
    backend = str(table(settings.toml, "build-system").get("build-backend"))
    tool = table(settings.toml, "tool", "setuptools")
    named = [name for name in COMPILED if name in settings.setup or name in tool]
    return next((one for one in COMPILERS if backend.startswith(one)), "") or "".join(named[:1])


def ini_groups(text: str) -> dict[str, str]:
    """Entry points as one text: `[group]`, and lines below it."""
    parts = re.split(r"^\s*\[([^\]]+)\]\s*$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
