"""Speed of reading photographs, beside a bare DataLoader of torchvision's with the same transforms.

    python benchmarks/loading.py --images 600 --width 500 --height 375 --workers 2 --repeat 3

Makes JPEG files of its own in a temporary folder, and reads every image once per repetition, the
ways in turn: `bare` (ImageFolder, RandomResizedCrop, flip, batches by DataLoader), `files` (ours,
decoding as it goes) and `store` (ours, from the decoded images on the disk). Peak memory is that of
this process and its largest worker.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from trainer.config import TrainConfig, load_config
from trainer.data import store
from trainer.data.data_module import ImageDataModule, WorkerLoader
from trainer.data.images import ImageData
from trainer.data.sources import load_images


def write_photos(folder: Path, count: int, width: int, height: int) -> None:
    """Smooth shapes with some noise: about as many bytes as a photograph of that size."""

    def one(number: int) -> None:
        random = np.random.default_rng(number)
        small = random.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), np.uint8)
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        noise = random.integers(-6, 7, (height, width, 1), np.int16)
        pixels = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
        part = "test" if number < 4 else "train"
        place = folder / part / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.jpg", quality=88)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, range(count + 4)))


def bare(folder: Path, config: TrainConfig) -> DataLoader[Any]:
    transforms = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(config.image_size, scale=(config.crop_scale, 1), antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )
    return DataLoader(
        ImageFolder(str(folder / "train"), transforms),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=config.num_workers,
        persistent_workers=True,
    )


def ours(data: ImageData, config: TrainConfig) -> WorkerLoader:
    return WorkerLoader(ImageDataModule(data, config))


def images_per_s(epoch: Callable[[], Any]) -> float:
    """Of one epoch that begins with running workers."""
    began = time.perf_counter()
    count = sum(len(labels) for _, labels in epoch())
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("images", 600), ("width", 500), ("height", 375), ("size", 224)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    config = load_config(
        "standard",
        {
            "image_size": options.size,
            "num_workers": options.workers,
            "validation_fraction": 0,
            "patience": 0,
            "batch_size": 32,
            "pin_memory": False,
        },
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        write_photos(folder, options.images, options.width, options.height)
        kept = load_images(str(folder), image_size=options.size)
        store.ROOM_SHARE, store.read_index = 0.0, lambda path: None
        read = load_images(str(folder), image_size=options.size)
        loader = bare(folder, config)
        own, stored = ours(read, config), ours(kept, config)
        ways: dict[str, Callable[[int], Any]] = {
            "bare": lambda epoch: loader,
            "files": lambda epoch: own.batches(epoch, 0),
            "store": lambda epoch: stored.batches(epoch, 0),
        }
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for epoch in range(options.repeat + 1):
            for name, way in ways.items():
                speed = images_per_s(lambda: way(epoch))  # noqa: B023  called at once
                if epoch:  # the first one starts the workers
                    speeds[name].append(speed)
    for name, values in speeds.items():
        share = [value / other for value, other in zip(values, speeds["bare"], strict=True)]
        print(
            f"{name:6} {statistics.mean(values):7.0f} images/s (n={len(values)},"
            f" {min(values):.0f} to {max(values):.0f}), {100 * statistics.mean(share):.0f}% of bare"
        )
    for who, whose in (
        ("this process", resource.RUSAGE_SELF),
        ("a worker", resource.RUSAGE_CHILDREN),
    ):
        print(f"peak memory of {who}: {resource.getrusage(whose).ru_maxrss / 1024:.0f} MB")
    print(f"{options.workers} workers, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
