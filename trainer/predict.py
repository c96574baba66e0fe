"""What a trained network takes images for: `python -m trainer.predict --checkpoint weights.pt
PATH…`."""

from __future__ import annotations

import argparse
import csv
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.data.archive import DataError
from trainer.data.decode import Form, cores, reason
from trainer.data.images import read_evaluated
from trainer.data.listing import SUFFIXES
from trainer.evaluate import EXIT_DATA, Loaded, averaged_logits, load_network, uses_half

BATCH, TOP = 64, 5


@dataclass(frozen=True)
class Guess:
    """A class and its probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """`top`: the likeliest classes, at most five, the first one first."""

    path: str
    top: tuple[Guess, ...]

    @property
    def label(self) -> str:
        return self.top[0].label

    @property
    def probability(self) -> float:
        return self.top[0].probability


class Model:
    """A trained network with its classes and all that is done to an image before it. `network`
    takes uint8 [B, 3, size, size] from `read` and gives logits."""

    def __init__(self, loaded: Loaded, accelerator: str = "auto") -> None:
        use_gpu = accelerator != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.network = loaded.network.to(self.device).eval()
        self.config: TrainConfig = loaded.config
        self.classes = loaded.classes
        self.form = Form(loaded.config.image_size)

    def read(self, path: str | Path) -> Tensor:
        """uint8 [3, size, size], as evaluated. Raises DataError for what is no image."""
        try:
            return read_evaluated(str(path), self.form)
        except Exception as error:  # each format's decoder has its own kinds for a damaged file
            raise DataError(
                f"{path} is no image that can be read ({reason(error, path)})"
            ) from None

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, size, size] to float [B, classes], on the CPU."""
        half = self.device.type == "cuda" and uses_half(self.config, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            logits = averaged_logits(self.network, images.to(self.device), self.config.tta)
        return logits.float().softmax(1).cpu()

    def predict(self, *paths: str | Path) -> list[Prediction]:
        """Of image files. Raises DataError for one that is no image."""
        failed: list[str] = []
        predictions = list(self.predict_each([str(path) for path in paths], failed))
        if failed:
            raise DataError(failed[0])
        return predictions

    def predict_each(self, paths: Sequence[str], failed: list[str]) -> Iterator[Prediction]:
        """In order, a batch at a time. What is no image is told in `failed` and passed over."""
        for first in range(0, len(paths), BATCH):
            if found := self.read_all(paths[first : first + BATCH], failed):
                yield from self.name(found)

    def read_all(self, paths: Sequence[str], failed: list[str]) -> list[tuple[str, Tensor]]:
        """Side by side; each with its path."""

        def read(path: str) -> Tensor | None:
            try:
                return self.read(path)
            except DataError as error:
                failed.append(str(error))
                return None

        with ThreadPoolExecutor(cores()) as pool:
            images = zip(paths, pool.map(read, paths), strict=True)
            return [(path, image) for path, image in images if image is not None]

    def name(self, images: Sequence[tuple[str, Tensor]]) -> Iterable[Prediction]:
        probabilities = self.probabilities(torch.stack([image for _, image in images]))
        values, places = probabilities.topk(min(TOP, len(self.classes)))
        for (path, _), shares, numbers in zip(
            images, values.tolist(), places.tolist(), strict=True
        ):
            guesses = zip(numbers, shares, strict=True)
            yield Prediction(path, tuple(Guess(self.classes[n], share) for n, share in guesses))


def load(checkpoint: str | Path, accelerator: str = "auto") -> Model:
    """From weights.pt or a checkpoint. Raises DataError."""
    return Model(load_network(Path(checkpoint)), accelerator)


def find_images(places: Sequence[str], failed: list[str]) -> list[str]:
    """Files as they are named, the images below folders, and what fits a pattern. A place without
    any is told in `failed`."""
    found: list[str] = []
    for place in places:
        if os.path.isdir(place):
            below = [
                os.path.join(folder, name)
                for folder, _, names in os.walk(place)
                for name in names
                if name.lower().endswith(SUFFIXES) and not name.startswith(".")
            ]
        else:
            below = [place] if os.path.exists(place) else glob.glob(place, recursive=True)
        if not below:
            failed.append(f"there is no image at {place}: name a file, a folder or a pattern")
        found += sorted(below)
    return list(dict.fromkeys(found))


def write_csv(predictions: Iterable[Prediction], target: IO[str]) -> None:
    """path, class and probability, then the further classes."""
    writer = csv.writer(target, lineterminator="\n")
    further = [f"{name}_{n}" for n in range(2, TOP + 1) for name in ("class", "probability")]
    writer.writerow(["path", "class", "probability", *further])
    for prediction in predictions:
        cells = [
            cell for guess in prediction.top for cell in (guess.label, f"{guess.probability:.6f}")
        ]
        writer.writerow([prediction.path, *cells])


def write_json(predictions: Iterable[Prediction], target: IO[str]) -> None:
    def named(guess: Guess) -> dict[str, object]:
        return {"class": guess.label, "probability": guess.probability}

    rows = [
        {"path": one.path, **named(one.top[0]), "top": [named(guess) for guess in one.top]}
        for one in predictions
    ]
    json.dump(rows, target, ensure_ascii=False, indent=1)
    target.write("\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.predict",
        description="What a trained network takes images for, and how sure it is.",
        epilog="exit codes: 0 done, 2 wrong options, 3 some image or the checkpoint can't be read",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files, folders, patterns")
    parser.add_argument("--checkpoint", required=True, help="weights.pt, a checkpoint or a run")
    parser.add_argument("--json", action="store_true", help="JSON instead of CSV")
    parser.add_argument("--output", type=Path, help="a file for it; default: the screen")
    parser.add_argument("--accelerator", choices=("auto", "cpu"), default="auto")
    options = parser.parse_args(arguments)
    failed: list[str] = []
    try:
        if paths := find_images(options.paths, failed):
            model = load(options.checkpoint, options.accelerator)
            target = open(options.output, "w", encoding="utf-8") if options.output else sys.stdout
            write = write_json if options.json else write_csv
            write(model.predict_each(paths, failed), target)
            if options.output:
                target.close()
    except (DataError, OSError) as error:
        failed.append(str(error))
    for text in failed:
        print(f"error: {text}", file=sys.stderr)
    return EXIT_DATA if failed else 0


if __name__ == "__main__":
    sys.exit(main())
