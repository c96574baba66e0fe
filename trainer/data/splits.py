"""Which images are held back from the training: of every class in its share, the same for every
seed of a training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.data.archive import DataError

SPLIT_SEED = 0


def hold_out(labels: Tensor, wanted: int) -> tuple[list[Tensor], list[Tensor]]:
    """What is left of each class, and `wanted` images held back, as places in a fixed random
    order."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(labels), generator=generator)
    classes = [order[labels[order] == label] for label in range(int(labels.max()) + 1)]
    counts = [len(part) for part in classes]
    held = deal_out(wanted, counts) if wanted else [0] * len(counts)
    return (
        [part[count:] for part, count in zip(classes, held, strict=True)],
        [part[:count] for part, count in zip(classes, held, strict=True)],
    )


def split_indices(labels: Tensor, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Training and validation, both with each class in its share; at most validation_max. Sorted,
    and the same for every seed."""
    wanted = min(round(config.validation_fraction * len(labels)), config.validation_max)
    if config.validation_fraction:
        wanted = max(1, wanted)
    rest, held = hold_out(labels, wanted)
    if config.train_images:
        kept = config.train_images / len(labels)
        rest = [
            part[: max(1, round((len(part) + len(other)) * kept))]
            for part, other in zip(rest, held, strict=True)
        ]
    train, validation = torch.cat(rest).sort().values, torch.cat(held).sort().values
    if config.validation_fraction and not len(validation):
        raise DataError(
            "no image is left for validation: add images, or set validation_fraction 0 and"
            " patience 0"
        )
    return train, validation


def deal_out(wanted: int, counts: list[int]) -> list[int]:
    """`wanted` images in the classes' proportion: of each class of two or more at least one, and
    never its last."""
    share = wanted / max(1, sum(counts))
    held = [min(count - 1, max(1, int(count * share))) if count else 0 for count in counts]
    # What rounding down has left over goes where most is missing; what the ones above have taken
    # too much, where most is held.
    for _ in range(wanted - sum(held)):
        place = max(
            range(len(counts)),
            key=lambda i: (counts[i] * share - held[i]) if held[i] < counts[i] - 1 else -math.inf,
        )
        held[place] += held[place] < counts[place] - 1
    while sum(held) > max(wanted, sum(count > 1 for count in counts)):
        held[max(range(len(counts)), key=lambda i: (held[i] > 1, held[i] - counts[i] * share))] -= 1
    return held
