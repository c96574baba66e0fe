"""A folder of real image files that a network can tell apart: red, green and blue ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, train: int = 60, test: int = 20) -> Path:
    """`train` and `test` images per class, 48×40 pixels; returns the folder."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for channel, name in enumerate(("red", "green", "blue")):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                pixels[..., channel] += 130
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder
