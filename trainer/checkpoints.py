"""Checkpoints that appear whole, and the newest one that loads."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from trainer.processes import host_count, is_first_process
from trainer.progress import write_whole

LAST, BEST = "last.ckpt", "best.ckpt"
"""Names that stay, so that a mirror of the run has one of each, and not every best one that there
was."""
WITHIN = "within.ckpt"
"""Where no best one is kept to go back to, what is saved within an epoch leaves the last epoch's
end alone."""
APART_S = 20.0
"""Checkpoints are written at most so often, and always when the training ends."""


def save_whole(content: Mapping[str, Any], path: Path) -> None:
    """Raises OSError where it can't be written; what stood there before stays."""
    # torch's own writer turns a full disk into errors that don't say so.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_whole(path, buffer.getbuffer())


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoints as files that appear whole. One that follows too soon after another
    is kept in memory, for each path the newest, and written with the next one or at the end."""

    def __init__(self) -> None:
        self.written = time.monotonic()
        self.waiting: dict[str, dict[str, Any]] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        self.waiting.pop(str(path), None)
        if time.monotonic() - self.written < APART_S:
            # Not in a GPU's memory, which the next step may need.
            self.waiting[str(path)] = apply_to_collection(
                checkpoint, Tensor, Tensor.to, "cpu", copy=True
            )
        else:
            self.flush()
            save_whole(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *rest: Any, **named: Any) -> dict[str, Any]:
        self.flush()
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        self.waiting.pop(str(path), None)
        Path(path).unlink(missing_ok=True)

    def teardown(self) -> None:
        self.flush()

    def flush(self) -> None:
        """Write all that waits, in the order in which it came."""
        for path in list(self.waiting):
            save_whole(self.waiting[path], Path(path))
            del self.waiting[path]
        self.written = time.monotonic()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Raises ValueError where the file is no whole checkpoint of ours. Nothing in it is
    executed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file makes torch.load raise many kinds
        raise ValueError(f"{path} does not load: {type(error).__name__}") from None
    if not isinstance(content, dict) or "training" not in content or "loops" not in content:
        raise ValueError(f"{path} holds no state to go on from")
    return content


def remove_unfinished(directory: Path) -> None:
    """What a kill left of a checkpoint that was being written: each is as large as a whole one."""
    for left in directory.glob("*.ckpt.*.tmp"):
        left.unlink(missing_ok=True)


def standing(path: Path | None) -> dict[str, Any]:
    """Where the training of a checkpoint stands; None: at its beginning."""
    place: dict[str, Any] = {"epoch": 0, "step": None}
    return load_checkpoint(path)["training"] if path else place


def share_checkpoints(directory: Path) -> None:
    """The first process's files, for hosts that don't share its disk."""
    if host_count() == 1:
        return
    first = is_first_process()
    content = {path.name: path.read_bytes() for path in directory.glob("*.ckpt")} if first else {}
    shared = [content]
    torch.distributed.broadcast_object_list(shared)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0 and not first:
        for path in directory.glob("*.ckpt"):
            if path.name not in shared[0]:
                path.unlink()
        for name, data in shared[0].items():
            place = directory / name
            if not place.exists() or place.read_bytes() != data:
                write_whole(place, data)
    torch.distributed.barrier()


def newest_that_loads(
    directory: Path, epochs_only: bool = False
) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The checkpoint that is furthest on, and what was wrong with those passed over; None where
    none loads.

    `epochs_only`: only those from an epoch's end, whose loss and accuracy were found good.
    """
    found: list[tuple[tuple[int, int], Path, dict[str, Any]]] = []
    wrong = []
    for path in sorted(directory.glob("*.ckpt")):
        try:
            content = load_checkpoint(path)
            position = (int(content["training"]["epoch"]), int(content["training"]["batch"]))
            if not epochs_only or position[1] == 0:
                found.append((position, path, content))
        except (ValueError, KeyError, TypeError) as error:
            wrong.append(str(error))
    if not found:
        return None
    _, path, content = max(found, key=lambda item: (item[0], item[1].name))
    return path, content, wrong
