"""Made-up images, to try a training without any."""

from __future__ import annotations

import numpy as np
import torch

from trainer.data.images import Arrays, ImageData

SIZE = 32


def make_synthetic(train: int = 12_000, test: int = 2_000, classes: int = 10) -> ImageData:
    """Labelled images in CIFAR-10's shape: gratings whose slope and frequency tell the class, with
    random colours, place and noise.

    A mirrored image is of the same class, as in photographs.
    """
    parts = [_gratings(count, classes, seed) for count, seed in ((train, 1), (test, 2))]
    return ImageData(
        parts[0],
        parts[1],
        tuple(f"pattern {number}" for number in range(classes)),
        "synthetic",
        "synthetic",
    )


def _gratings(count: int, classes: int, seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    random.shuffle(labels)
    ys, xs = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    angle = (
        (np.pi / 8 * (labels % 5) + random.normal(0, 0.10, count)) * random.choice((-1, 1), count)
    )[:, None, None]
    frequency = (np.where(labels < classes / 2, 2.5, 5.0) * np.exp(random.normal(0, 0.12, count)))[
        :, None, None
    ]
    phase = random.uniform(0, 2 * np.pi, count)[:, None, None]
    wave = np.sin(2 * np.pi * frequency * (xs * np.cos(angle) + ys * np.sin(angle)) + phase)
    centre = random.uniform(0.25, 0.75, (count, 2, 1, 1))
    window = np.exp(-((xs - centre[:, 0]) ** 2 + (ys - centre[:, 1]) ** 2) / 0.12)
    colour, ground = random.uniform(-0.5, 0.5, (2, count, 3, 1, 1))
    image = (
        0.5
        + 0.3 * ground
        + (wave * window)[:, None] * colour
        + random.normal(0, 0.12, (count, 3, SIZE, SIZE))
    )
    pixels = (255 * image.clip(0, 1)).astype(np.uint8)
    return Arrays(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))
