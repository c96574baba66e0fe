"""One image file as RGB pixels, whatever its kind."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

EVALUATED_SHARE = 0.875
"""Of the shorter side: evaluation crops 224 pixels of 256, as is usual."""
LARGE_SIZE, SMALL_SIZE = 224, 32
HEADERS = 200
ANIMATED = ("GIF", "PNG", "WEBP", "TIFF")


FIT_SIZE = 64
"""Up to so many pixels per side an image is kept at its size, else larger."""


@dataclass(frozen=True)
class Form:
    """What is kept of an image. Up to 64 pixels per side its middle at size × size (`fit`); else
    the whole image, halved, thirded … as long as it stays larger than what evaluation crops."""

    size: int

    @property
    def fit(self) -> bool:
        return self.size <= FIT_SIZE

    @property
    def shorter(self) -> int:
        return self.size if self.fit else round(self.size / EVALUATED_SHARE)


def decode(path: str, form: Form) -> tuple[NDArray[np.uint8], str]:
    """Pixels, uint8 [height, width, 3], and what the file is: a mode of Pillow's, "12-bit",
    "16-bit" or "animated". Raises whatever the format's decoder raises for a damaged file."""
    with Image.open(path) as image:
        mode = kind_of(image)
        if not form.fit:
            # JPEG files are decoded at a half, a quarter or an eighth at once.
            scale = form.shorter / min(image.size)
            image.draft(None, (int(image.width * scale), int(image.height * scale)))
        whole = to_rgb(ImageOps.exif_transpose(image))
    if form.fit and whole.size != (form.size, form.size):
        whole = ImageOps.fit(whole, (form.size, form.size), Image.Resampling.BICUBIC)
    elif not form.fit and (factor := min(whole.size) // form.shorter) > 1:
        whole = whole.reduce(factor)
    return np.array(whole, dtype=np.uint8), mode


def reason(error: Exception, path: str | os.PathLike[str]) -> str:
    """Of a file that decode() can't read, without its name."""
    said = (isinstance(error, OSError) and error.strerror) or str(error)
    text = " ".join(said.replace(repr(str(path)), "").split())
    return text[:100] or type(error).__name__


def kind_of(image: Image.Image) -> str:
    """Cameras and microscopes write 12 bits into files of 16, which don't say so."""
    if image.format in ANIMATED and getattr(image, "n_frames", 1) > 1:
        return "animated"
    if not image.mode.startswith("I"):
        return image.mode
    return f"{bits_of(np.asarray(image))}-bit"


def bits_of(pixels: NDArray[Any]) -> int:
    return 12 if pixels.max() < 1 << 12 else 16


def to_rgb(image: Image.Image) -> Image.Image:
    """On white where it is transparent. More than 8 bits and floats, which convert() would clip,
    are scaled."""
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        image = Image.fromarray((pixels >> bits_of(pixels) - 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        pixels = np.nan_to_num(np.asarray(image))
        scale = 255 if pixels.max() <= 1 else 1
        image = Image.fromarray((scale * pixels).clip(0, 255).astype(np.uint8))
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    image = image.convert("RGBA" if "A" in image.mode or "transparency" in image.info else "RGB")
    if image.mode == "RGBA":
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, image).convert("RGB")
    return image


def header_sizes(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Width and height of some of the files, evenly chosen."""
    sizes = []
    for path in paths[:: max(1, len(paths) // HEADERS)]:
        # Damaged ones are named when all are decoded.
        with contextlib.suppress(Exception), Image.open(path) as image:
            sizes.append(image.size)
    return sizes


def usual_size(paths: Sequence[str]) -> int:
    """For images of these files: 224, or as large as they are where they are smaller."""
    shorter = [min(size) for size in header_sizes(paths)] or [SMALL_SIZE]
    return min(LARGE_SIZE, max(SMALL_SIZE, int(statistics.median(shorter)) // 16 * 16))


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
