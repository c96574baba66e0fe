"""A hostile string as a user gives it to the real command and as the real trainer has used it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remote.loopback import LoopbackServer

SHORT = ["--set", "widths=8,8,8", "--set", "max_epochs=1"]


def is_a_name(text: str) -> bool:
    """A file can be called so. Names in several lines are refused before anything is sent."""
    return (
        text.strip() not in ("", ".", "..")
        and not set("/\n") & set(text)
        and len(text.encode("utf-8", "surrogateescape")) < 256
    )


def trained_on(
    name: str, fab: Callable[..., Any], project: Path, server: LoopbackServer, photos: Path
) -> str:
    """Train on images in a folder of that name; returns the place from the summary of the training,
    which has seen the images."""
    place = server.home / name
    shutil.copytree(photos, place)
    fab(project, server, "train", "--recipe", "demo", *SHORT, "--data", str(place), "--follow")
    runs = server.home / "projects" / "p" / "runs"
    summary = json.loads(
        max(runs.glob("*/summary.json"), key=lambda path: path.stat().st_mtime).read_text()
    )
    assert summary["data"]["classes"] == ["blue", "green", "red"]
    data: str = summary["config"]["data"]
    return data
