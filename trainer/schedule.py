"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from trainer.config import TrainConfig


def rate_factor(config: TrainConfig, epoch: float, max_epochs: int) -> float:
    """The share of the peak learning rate after so many epochs, which need not be whole: from 0 to
    1."""
    if config.schedule == "restarts":
        compressed = config.last_cycle == "compressed"
        return restarts_factor(epoch, max_epochs, config.restart_epochs, compressed)
    shape = triangle_factor if config.schedule == "triangle" else cosine_factor
    return shape(epoch / max_epochs, config.warmup_fraction, config.final_fraction)


def resolution(config: TrainConfig, step: int, steps_per_epoch: int) -> int:
    """Pixels per side at a step: `resolutions` in equal portions of the training."""
    portion = len(config.resolutions) * step // (steps_per_epoch * config.max_epochs)
    return scaled(config.resolutions[min(portion, len(config.resolutions) - 1)], config)


def scaled(of_32: int, config: TrainConfig) -> int:
    """A resolution for images of 32 pixels, as one for those of image_size."""
    return of_32 * (config.image_size or 32) // 32


def restarts_factor(epoch: float, max_epochs: int, period: int, compressed: bool = False) -> float:
    """Cosine annealing with warm restarts (Loshchilov & Hutter 2017, arXiv 1608.03983), T_mult 1,
    minimum 0.

    Where `max_epochs` is no multiple of `period` the last cycle is cut off; `compressed`: shortened
    to end at the minimum.
    """
    cycle = int(epoch // period)
    length = period
    if compressed:
        # A scheduler asks for the step after the last one too.
        cycle = min(cycle, (max_epochs - 1) // period)
        length = min(period, max_epochs - cycle * period)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - cycle * period) / length)))


def triangle_factor(progress: float, warmup: float, final: float) -> float:
    """Linear from 0 to 1 during `warmup` (a share of the training), then linear to `final` at its
    end."""
    if progress < warmup:
        return progress / warmup
    return 1 - (1 - final) * min(1.0, (progress - warmup) / (1 - warmup)) if warmup < 1 else 1.0


def cosine_factor(progress: float, warmup: float, final: float) -> float:
    """As triangle_factor, with half a cosine for the way down."""
    falling = triangle_factor(progress, warmup, 0.0)
    if progress < warmup:
        return falling
    return final + (1 - final) * 0.5 * (1 - math.cos(math.pi * falling))
