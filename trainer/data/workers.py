"""Worker processes that make batches, and the shared memory that their batches pass through."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainer.data.decode import FIT_SIZE, SMALL_SIZE, cores
from trainer.data.images import Arrays, Files
from trainer.processes import say

Batch = tuple[Tensor, Tensor]
"""uint8 [B, 3, size, size] and int64 [B]."""
SHARED = "/dev/shm"
SHARED_PART = 0.8
"""Of the free shared memory, at most so much is filled."""
EVALUATED = 1000
"""Images of 32 pixels that are evaluated at once; of larger ones fewer."""
EVALUATED_AT_LEAST = 32


@dataclass(frozen=True)
class LoaderOptions:
    """batch_bytes: of one batch, as it passes from a worker to the training."""

    workers: int
    batch_bytes: int
    prefetch_factor: int = 2
    persistent: bool = False
    pin_memory: bool = False


def make_loader(
    batches: Dataset[Batch], which: Sampler[Any] | list[Tensor], options: LoaderOptions
) -> DataLoader[Batch]:
    """Gives tensors, or arrays where shared memory is short (`as_tensors` makes both the same)."""
    more: dict[str, Any] = {}
    if options.workers:
        more = {
            "prefetch_factor": options.prefetch_factor,
            "persistent_workers": options.persistent,
        }
        if note := shared_memory_note(options, shared_memory_free()):
            say(note)
            more["collate_fn"] = _as_arrays
    return DataLoader(
        batches,
        batch_size=None,
        sampler=which,
        num_workers=options.workers,
        pin_memory=options.pin_memory,
        **more,
    )


def shared_memory_free() -> int | None:
    """Bytes; None on a system that has none to be filled."""
    try:
        status = os.statvfs(SHARED)
    except (OSError, AttributeError):
        return None
    return status.f_bavail * status.f_frsize


def shared_memory_note(options: LoaderOptions, free: int | None) -> str:
    """What to say where the batches under way would not fit: a worker would die of it, by SIGBUS.
    Empty where they fit."""
    needed = (options.workers * options.prefetch_factor + 1) * options.batch_bytes
    if free is None or needed < SHARED_PART * free:
        return ""
    return (
        f"{SHARED} has {free / 1e6:.0f} MB free, and loading would fill {needed / 1e6:.0f} MB:"
        " batches go through pipes instead, which takes longer. More of it: docker run"
        f" --shm-size={-(-2 * needed // 10**9)}g"
    )


def _as_arrays(batch: Batch) -> tuple[Any, Any]:
    """Arrays are copied through a pipe, tensors lie in shared memory."""
    return batch[0].numpy(), batch[1].numpy()


def as_tensors(loader: DataLoader[Batch]) -> Iterator[Batch]:
    for images, labels in loader:
        if isinstance(images, np.ndarray):
            yield torch.from_numpy(images), torch.from_numpy(labels)
        else:
            yield images, labels


def evaluation_parts(images: Arrays | Files, rank: int = 0, world: int = 1) -> list[Tensor]:
    """Which images come together, in order. Several processes have the same number of parts; one
    may be without images."""
    batch = EVALUATED
    if images.size > FIT_SIZE:
        batch = max(EVALUATED_AT_LEAST, EVALUATED * SMALL_SIZE**2 // images.size**2)
    return [
        torch.arange(first, min(first + world * batch, len(images)))[rank::world]
        for first in range(0, len(images), world * batch)
    ]


def evaluation_batches(
    images: Arrays | Files, workers: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    parts = evaluation_parts(images, rank, world)
    if isinstance(images, Arrays):
        yield from ((images.batch(part), images.labels[part]) for part in parts)
        return
    workers = min(workers, cores(), len(parts) - 1)  # for a single batch it takes none
    largest = max(map(len, parts), default=0)
    options = LoaderOptions(max(0, workers), 3 * largest * images.size**2)
    yield from as_tensors(make_loader(_Evaluated(images), parts, options))


class _Evaluated(Dataset[Batch]):
    def __init__(self, images: Files) -> None:
        self.images = images

    def __getitem__(self, part: Tensor) -> Batch:
        return self.images.batch(part), self.images.labels[part]
