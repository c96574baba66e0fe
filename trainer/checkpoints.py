"""Checkpoints that appear whole, and the newest one that loads."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainer.progress import write_whole

LAST, BEST = "last.ckpt", "best.ckpt"
"""Names that stay, so that a mirror of the run has one of each, and not every best one that there
was."""
LAST_EVERY_S = 20.0
"""last.ckpt is written at an epoch's end if the last one is older; and always when the training
ends."""
WITHIN_EPOCH_EVERY_S = 120.0
"""Long epochs are saved in between."""


def save_whole(content: Mapping[str, Any], path: Path) -> None:
    """Raises OSError where it can't be written; what stood there before stays."""
    # torch's own writer turns a full disk into errors that don't say so.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_whole(path, buffer.getbuffer())


class Clock:
    """Says when the next save is due."""

    def __init__(self) -> None:
        self.saved = time.monotonic()

    def due(self, seconds: float) -> bool:
        return time.monotonic() - self.saved >= seconds

    def reset(self) -> None:
        self.saved = time.monotonic()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Raises ValueError where the file is no whole checkpoint of ours. Nothing in it is
    executed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file makes torch.load raise many kinds
        raise ValueError(f"{path} does not load: {type(error).__name__}") from None
    if (
        not isinstance(content, dict)
        or "training" not in content
        or "optimizer_states" not in content
    ):
        raise ValueError(f"{path} holds no state to go on from")
    return content


def newest_that_loads(
    directory: Path, judged: bool = False
) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The checkpoint that is furthest on, and what was wrong with those passed over; None where
    none loads.

    `judged`: only those from an epoch's end, whose loss and accuracy were found good.
    """
    found: list[tuple[tuple[int, int], Path, dict[str, Any]]] = []
    wrong = []
    for path in sorted(directory.glob("*.ckpt")):
        try:
            content = load_checkpoint(path)
            position = (int(content["training"]["epoch"]), int(content["training"]["batch"]))
            if not judged or position[1] == 0:
                found.append((position, path, content))
        except (ValueError, KeyError, TypeError) as error:
            wrong.append(str(error))
    if not found:
        return None
    _, path, content = max(found, key=lambda item: (item[0], item[1].name))
    return path, content, wrong
