"""Variables that a run is given from here: by name, or as a file in the form of `.env`. Their
values are secrets: they go to the server's hidden file and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
LINE = re.compile(
    r"""([A-Za-z_]\w*)\s*=\s*(?:'([^']*)'|"([^"]*)"|(?!['"])(.*?))(?:\s+\#.*|\s*)\Z""", re.ASCII
)
OURS = ("REMOTE_", "CUDA_VISIBLE_DEVICES")
"""What a run is told by these it is told by us."""


def read_env(given: Iterable[str], option: str, project: Path) -> dict[str, str]:
    """The variables that `given` names: NAME takes the value here, @FILE all of a file, which is
    looked for in the project. Raises ValueError that begins with `option` and holds no value."""
    found: dict[str, str] = {}
    for word in given:
        if word.startswith("@"):
            found |= read_env_file(project / Path(word[1:]).expanduser(), f"{option} {word}")
        elif "=" in word:
            name = word.partition("=")[0]
            ways = f"{option} {name} takes it from here, {option} @FILE from a file"
            if option.startswith("-"):
                text = f"{option} {name}=…: a value on the command line is seen by others; {ways}"
            else:
                text = f"{option} {name}=…: a value in fabric.yaml is seen by others; {ways}"
            raise ValueError(text)
        elif not NAME.match(word):
            raise ValueError(f"{option} needs a variable's name or @FILE, not {word!r:.60}")
        elif word not in os.environ:
            raise ValueError(f"{option} {word}: there is no such variable here; export it first")
        else:
            found[word] = os.environ[word]
    for name, value in found.items():
        if name.startswith(OURS):
            raise ValueError(f"{option} {name}: every run is given that by this program")
        if "\0" in value:
            raise ValueError(f"{option} {name}: its value holds a NUL character")
    return found


def read_env_file(path: Path, option: str) -> Mapping[str, str]:
    """Lines NAME=value; `export` before, quotes, and comments are fine."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError):
        raise ValueError(f"{option}: the file can't be read") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            line = line.strip().removeprefix("export ")
            match = LINE.match(line)
            if match is None:
                raise ValueError(f"{option}: line {number} is not of the form NAME=value")
            name, single, double, plain = match.groups()
            found[name] = plain if plain is not None else single or double or ""
    return found
