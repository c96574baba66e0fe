"""How measured figures are written: what all benchmarks say of the machine, and one form of page
for them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def about(script: str, software: str) -> dict[str, Any]:
    """What a reader needs to judge the figures: command (without folders), machine, versions; no
    names of machines or people."""
    words = (Path(word).name if "/" in word else word for word in sys.argv[1:])
    return {
        "command": " ".join([f"python benchmarks/{script}", *words]),
        "machine": f"{cpu()}, {platform.system()} {platform.machine()}",
        "software": f"Python {platform.python_version()}, {software}",
    }


def cpu() -> str:
    """The processor's name and number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor() or "unknown CPU",
    )
    return f"{name}, {os.cpu_count()} cores"


def spread(values: Iterable[float | None], digits: int = 0) -> str:
    """Median (min–max) of those that are there."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    low, middle, high = (
        f"{value:.{digits}f}" for value in (min(known), statistics.median(known), max(known))
    )
    return f"{middle} ({low}–{high})" if len(known) > 1 else middle


def write_page(
    name: str, title: str, said: Mapping[str, Any], text: str, data: Mapping[str, Any], write: bool
) -> None:
    """Print the page, and with `write` keep it and its data as results/<name>.{md,json}; never half
    of a file."""
    page = "\n".join(
        [
            f"# {title}",
            "",
            *(f"{key}: {value}  " for key, value in said.items()),
            "",
            text.rstrip(),
            "",
        ]
    )
    print(page)
    if not write:
        return
    RESULTS.mkdir(exist_ok=True)
    data_text = json.dumps({"about": said, **data}, indent=1, ensure_ascii=False) + "\n"
    for file, content in ((f"{name}.md", page), (f"{name}.json", data_text)):
        draft = RESULTS / f".{file}.draft"
        draft.write_text(content)
        draft.replace(RESULTS / file)
