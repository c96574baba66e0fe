"""Augmentation of whole batches on any device. What happens to an image follows from seed, epoch
and its index alone.

So the order of loading, the number of workers and a stop in the middle change nothing: a resumed
run sees the same pixels.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import TrainConfig

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB
FLIP, SHIFT_Y, SHIFT_X, CUT_Y, CUT_X = range(5)


def random_integers(indices: Tensor, below: int, seed: int, epoch: int, stream: int) -> Tensor:
    """For every index (int64) a number from 0 to below-1: splitmix64 (Steele et al. 2014) as a
    counter-based generator."""
    start = int(
        np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )
    bits = indices * _GOLDEN + start
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    bits = bits ^ _shifted(bits, 31)
    return _shifted(bits, 33) % below


def _shifted(bits: Tensor, count: int) -> Tensor:
    """A right shift that fills with zeros; torch's own keeps the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


@functools.lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation of 0 … count-1, the same on every device and in every process. Kept, since
    every batch asks for it."""
    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence([seed, epoch, 99]).generate_state(1, np.uint32)[0])
    )
    return torch.randperm(count, generator=generator)


def augment(images: Tensor, indices: Tensor, epoch: int, config: TrainConfig) -> Tensor:
    """Flip, shift and cut out. images: uint8 [B, 3, H, W]; indices: int64 [B], on the same
    device."""
    if config.flip != "none":
        which = mirrored(indices, epoch, config)
        images = torch.where(which[:, None, None, None], images.flip(-1), images)
    if config.crop_padding:
        images = shift(images, indices, epoch, config)
    if config.cutout:
        images = cut_out(images, indices, epoch, config)
    return images


def mirrored(indices: Tensor, epoch: int, config: TrainConfig) -> Tensor:
    """bool [B]. alternate (airbench): in every other epoch, so that both forms are seen equally
    often."""
    if config.flip == "alternate":
        return (random_integers(indices, 2, config.seed, 0, FLIP) + epoch) % 2 == 1
    drawn = random_integers(indices, 2, config.seed, epoch, FLIP)
    return (drawn == 1) & (config.flip == "random")


def shift(images: Tensor, indices: Tensor, epoch: int, config: TrainConfig) -> Tensor:
    """Pad by reflection and crop at a random place: a shift by up to crop_padding pixels in each
    direction."""
    padding, (height, width) = config.crop_padding, images.shape[-2:]
    ys = random_integers(indices, 2 * padding + 1, config.seed, epoch, SHIFT_Y)
    xs = random_integers(indices, 2 * padding + 1, config.seed, epoch, SHIFT_X)
    rows = reflected(
        ys[:, None] + torch.arange(-padding, height - padding, device=images.device), height
    )
    columns = reflected(
        xs[:, None] + torch.arange(-padding, width - padding, device=images.device), width
    )
    images = images.gather(2, rows[:, None, :, None].expand_as(images))
    return images.gather(3, columns[:, None, None, :].expand_as(images))


def reflected(places: Tensor, size: int) -> Tensor:
    """Places outside of 0 … size-1 are mirrored at the border pixel, as in reflection padding."""
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)


def cut_out(images: Tensor, indices: Tensor, epoch: int, config: TrainConfig) -> Tensor:
    """Grey out a square (DeVries & Taylor 2017, arXiv 1708.04552)."""
    side, (height, width) = config.cutout, images.shape[-2:]
    ys = random_integers(indices, height, config.seed, epoch, CUT_Y)[:, None] - side // 2
    xs = random_integers(indices, width, config.seed, epoch, CUT_X)[:, None] - side // 2
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    inside = ((rows >= ys) & (rows < ys + side))[:, None, :, None] & (
        (columns >= xs) & (columns < xs + side)
    )[:, None, None, :]
    return images.masked_fill(inside, 122)


def mixup_draw(
    size: int, config: TrainConfig, epoch: int, batch: int
) -> tuple[float, Tensor] | None:
    """The share of the first image and the partners' places, from seed, epoch and batch; None where
    this batch is not mixed."""
    if not config.mixup_prob:
        return None
    random = np.random.default_rng([config.seed, epoch, batch, 77])
    if random.random() >= config.mixup_prob:
        return None
    share = float(random.beta(config.mixup_alpha, config.mixup_alpha))
    return share, torch.from_numpy(random.permutation(size))


def mixed(
    images: Tensor, labels: Tensor, drawn: tuple[float, Tensor], classes: int
) -> tuple[Tensor, Tensor]:
    """mixup (Zhang et al. 2018, arXiv 1710.09412): float images on the pixels' scale, which the
    network normalises, and targets float [B, classes]."""
    share, places = drawn[0], drawn[1].to(labels.device)
    targets = F.one_hot(labels, classes).float()
    return (
        share * images.float() + (1 - share) * images[places].float(),
        share * targets + (1 - share) * targets[places],
    )


def resized(images: Tensor, pixels: int) -> Tensor:
    if images.shape[-1] == pixels:
        return images
    return F.interpolate(images.float(), size=(pixels, pixels), mode="bilinear", antialias=True)
