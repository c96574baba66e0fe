"""conda's environment file: conda reads it there, but for its lines for pip, which are read like
any requirements file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from remote.requirements.lines import wrong
from remote.requirements.packages import readable, texts
from remote.screen.text import one_line


def read_environment(text: str, name: str) -> tuple[dict[str, Any], list[str]]:
    """What conda gets, and the lines for pip, which are taken out of it. Raises UsageError for what
    is no environment file."""
    import yaml

    try:
        with readable(name):
            # Every word stays as it is written: a version 3.10 is no number.
            found = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name} line {mark.line + 1}" if mark else name
        said = one_line(getattr(error, "problem", None) or str(error), 200)
        raise wrong(f"{place} is no YAML: {said}", "correct it; nothing was sent") from None
    if not isinstance(found, dict) or not isinstance(found.get("dependencies"), list):
        problem = f"{name} is no environment file of conda's: it lists no dependencies"
        raise wrong(problem, "name conda's file, or a requirements file that does not end in .yml")
    kept: list[Any] = []
    lines: list[str] = []
    for one in found["dependencies"]:
        if isinstance(one, dict) and "pip" in one:
            with readable(name):
                lines += texts(one["pip"], "pip")
        else:
            kept.append(one)
    return {**found, "dependencies": kept}, lines


def write_environment(found: dict[str, Any], lines: Sequence[str]) -> list[str]:
    """The lines of the file that conda gets; without any for pip, pip is not named."""
    import yaml

    more = [{"pip": list(lines)}] if lines else []
    whole = {**found, "dependencies": [*found["dependencies"], *more]}
    told: str = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=1 << 20)
    return told.splitlines()
