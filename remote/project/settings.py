"""The project's settings, checked all at once; what is under `remote:` in fabric.yaml, with
FABRIC_REMOTE_… on top."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from remote.errors import UsageError
from remote.project.command import shell_signs
from remote.project.slurm import slurm_problems
from remote.records import Settings, SlurmSettings

PREFIX = "FABRIC_REMOTE_"
SEVERAL = ("results", "include", "env", "data")
"""Keys that hold several things: separated by commas, or as a list."""
PROJECT_NAME = re.compile(r"[^\s/\\\x00-\x1f\x7f-\x9f][^/\\\x00-\x1f\x7f-\x9f]{0,99}\Z")

CHOICES = {
    "launcher": ("auto", "tmux", "setsid", "slurm"),
    "ssh": ("auto", "openssh", "paramiko"),
    "language": ("auto", "en", "zh"),
}
LINES = ("extra", "preamble")
"""Settings of Slurm that may be lists of lines."""


def defaults(kind: type = Settings) -> dict[str, Any]:
    """Every key and its value where nothing is said."""
    made = kind()
    return {
        field.name: defaults(SlurmSettings) if field.name == "slurm" else getattr(made, field.name)
        for field in dataclasses.fields(kind)
    }


def parse_settings(values: Mapping[str, Any], project_dir: Path) -> Settings:
    """Raises UsageError naming every wrong key and value."""
    errors: list[str] = []
    slurm = values.get("slurm") or {}
    if not isinstance(slurm, Mapping):
        errors.append(f"remote.slurm holds keys such as partition and time, not {slurm!r:.60}")
        slurm = {}
    given = _checked("remote", {**values, "slurm": None}, defaults(), errors)
    given["slurm"] = SlurmSettings(
        **_checked("remote.slurm", slurm, defaults(SlurmSettings), errors)
    )
    settings = Settings(**given)
    project = settings.project or project_dir.resolve().name or "project"
    errors += _problems(settings, project)
    if errors:
        remedy = "mend fabric.yaml (or the FABRIC_REMOTE_… variable)"
        raise UsageError("; ".join(errors), step="settings", remedy=remedy)
    return dataclasses.replace(
        settings, project=project, root=settings.root.replace("{project}", project)
    )


def take_environment(environment: MutableMapping[str, str]) -> dict[str, str]:
    """The settings among the variables, which are taken out of it: Fabric would cast each to the
    type that fabric.yaml happens to give it, and break off where it can't."""
    names = [name for name in environment if name.startswith(PREFIX)]
    return {name[len(PREFIX) :].lower(): environment.pop(name) for name in names}


def with_environment(values: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """What fabric.yaml says, and on top of it what `take_environment` has found."""
    slurm = {key[6:]: given[key] for key in given if key.startswith("slurm_")}
    made = {**values, **{key: given[key] for key in given if not key.startswith("slurm_")}}
    configured = made.get("slurm") or {}
    if slurm and isinstance(configured, Mapping):
        made["slurm"] = {**configured, **slurm}
    return made


def _checked(
    place: str, values: Mapping[str, Any], known: Mapping[str, Any], errors: list[str]
) -> dict[str, Any]:
    """The values that are known and of the right type; the others go to `errors`."""
    given = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            errors.append(
                f"unknown key {place}.{key}" + (f" (did you mean {near[0]}?)" if near else "")
            )
            continue
        try:
            given[key] = _typed(known[key], _joined(key, value))
        except (TypeError, ValueError):
            kind = "a number" if isinstance(known[key], float) else "a text"
            errors.append(f"{place}.{key} must be {kind}, not {value!r:.60}")
    return given


def _joined(key: str, value: Any) -> Any:
    """A list in YAML is one text of its parts, where a key may have several."""
    sign = "\n" if key in LINES else "," if key in SEVERAL else None
    if sign is None or not isinstance(value, (list, tuple)):
        return value
    return sign.join(map(str, value))


def listed(text: str) -> list[str]:
    """The parts of a setting that holds several, separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _typed(default: Any, value: Any) -> Any:
    if isinstance(default, float):
        if isinstance(value, bool):
            raise TypeError
        if not math.isfinite(number := float(value)):
            raise ValueError
        return number
    if value is None:
        return ""
    if isinstance(value, (Mapping, list, tuple, bool)):
        raise TypeError
    return str(value)


def _problems(settings: Settings, project: str) -> Iterator[str]:
    yield from _places(settings, project)
    yield from slurm_problems(settings.slurm)
    if not 0 < settings.timeout_s <= 3600:
        yield "remote.timeout_s must be between 0 and 3600 seconds"
    if not 0 <= settings.stay_s <= 86400:
        yield "remote.stay_s must be between 0 and 86400 seconds"
    for key, known in CHOICES.items():
        if (given := getattr(settings, key)) not in known:
            yield f"remote.{key} must be {', '.join(known)}, not {given!r:.40}"
    for key in ("max_file_mib", "ask_above_mib"):
        if getattr(settings, key) <= 0:
            yield f"remote.{key} must be above 0"
    if not re.fullmatch(r"auto|cpu|cu\d{2,4}|rocm[\d.]+", settings.torch):
        yield f"remote.torch must be auto, cpu or a build such as cu126, not {settings.torch!r:.40}"
    if not re.fullmatch(r"(-f\s*)?\S*", settings.torch_index.strip()):
        yield (
            "remote.torch_index must be an address, or -f and a page or folder of wheels, not"
            f" {settings.torch_index!r:.80}"
        )
    for key in ("command", "results", "requirements", "python", "dest", "shutdown"):
        if "\0" in getattr(settings, key):
            yield f"remote.{key} holds a NUL character"
    if not settings.command.strip():
        yield "remote.command must not be empty"
    try:
        shell_signs(settings.command)
    except ValueError as error:
        yield f"remote.command can't be read ({str(error).lower()}): {settings.command!r:.80}"


def _places(settings: Settings, project: str) -> Iterator[str]:
    """Of what names a place, here or there."""
    if not PROJECT_NAME.match(project) or project in (".", ".."):
        yield (
            f"the project's name {project!r:.120} can't be used as a directory's name; set"
            " remote.project"
        )
    root = settings.root.replace("{project}", "")
    if not settings.root.strip() or re.search(r"[\x00-\x1f\x7f]", settings.root):
        yield "remote.root must be a path"
    elif re.search(r"[${}]|^\s|\s$|^~[^/]", root):
        yield (
            "remote.root is taken as it stands, but for ~ and {project}; it can't be"
            f" {settings.root!r:.120}"
        )
    if settings.python and not settings.python.startswith(("/", "~")):
        yield (
            "remote.python must be an absolute path there, or begin with ~, not"
            f" {settings.python!r:.120}"
        )
    if not settings.dest.strip():
        yield "remote.dest must name a folder"
    # It stands in PATH and PYTHONPATH, which colons divide.
    if ":" in project:
        yield f"the project's name {project!r:.120} holds a colon; set remote.project"
    elif ":" in settings.root:
        yield f"remote.root must be a path without a colon, not {settings.root!r:.120}"
