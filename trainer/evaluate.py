"""Accuracy of a checkpoint on the test images: `python -m trainer.evaluate --checkpoint … --data
…`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import TrainConfig, from_dict
from trainer.data.archive import DataError
from trainer.data.data_module import worker_count
from trainer.data.images import Arrays, Files
from trainer.data.sources import load_images
from trainer.data.workers import evaluation_batches
from trainer.networks import make_network
from trainer.scores import Answers, Evaluation, table

EXIT_USAGE, EXIT_DATA = 2, 3
SHOWN = 8
IN_RUN = ("weights.pt", "checkpoints/best.ckpt", "checkpoints/last.ckpt")


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: Arrays | Files,
    tta: str = "none",
    half: bool = False,
    workers: int = 0,
) -> Evaluation:
    """On the network's device. `half`: bf16 autocast."""
    network.eval()
    device = next(network.parameters()).device
    answers, classes = [], 0
    for some, truth in evaluation_batches(images, workers):
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = averaged_logits(network, some.to(device), tta).float()
        answers.append(Answers.of(logits, truth.to(device)))
        classes = logits.shape[1]
    network.train()
    return Evaluation.of(answers, classes)


def averaged_logits(network: nn.Module, images: Tensor, tta: str) -> Tensor:
    """tta `flip`: mean over image and mirror image; `shift` (airbench): those, with half the weight
    for two shifts by a pixel."""
    if tta == "none":
        return run(network, images)
    if tta == "flip":
        return 0.5 * (run(network, images) + run(network, images.flip(-1)))
    padded = F.pad(images.float(), (1, 1, 1, 1), mode="reflect")
    shifted = [padded[:, :, :-2, :-2], padded[:, :, 2:, 2:]]
    total = averaged_logits(network, images, "flip") * 0.5
    for one in shifted:
        total = total + 0.25 * averaged_logits(network, one, "flip")
    return total


def run(network: nn.Module, images: Tensor) -> Tensor:
    logits = network(images.contiguous(memory_format=torch.channels_last))
    assert isinstance(logits, Tensor)
    return logits


@dataclass(frozen=True)
class Loaded:
    """A network with what was learnt, and how it was trained."""

    network: nn.Module
    config: TrainConfig
    classes: tuple[str, ...]


def load_network(path: Path) -> Loaded:
    """From best.ckpt, last.ckpt, weights.pt or the folder of a run, which has them; nothing in the
    file is executed. Raises DataError for what can't be loaded."""
    if path.is_dir():
        there = [path / name for name in IN_RUN if (path / name).exists()]
        if not there:
            raise DataError(f"no trained network in the folder {path}: name a {IN_RUN[0]}")
        path = there[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        about = content["hyper_parameters"]
        config, classes = from_dict(about["config"]), tuple(map(str, about["classes"]))
        network = make_network(config, len(classes))
        prefix = "network."
        state = {
            name[len(prefix) :]: value
            for name, value in content["state_dict"].items()
            if name.startswith(prefix)
        }
        network.load_state_dict(state)
    except Exception as error:  # torch.load raises many kinds for a broken file
        raise DataError(
            f"{path} can't be loaded as a checkpoint of this trainer:"
            f" {' '.join(str(error).split())[:200]}"
        ) from None
    return Loaded(network.to(memory_format=torch.channels_last), config, classes)


def evaluate_checkpoint(
    path: Path, data: str, accelerator: str = "auto"
) -> tuple[Evaluation, Loaded, str]:
    """On the test images, as the training evaluated it; with the hash of the images.

    Raises DataError where images and checkpoint don't belong together.
    """
    loaded = load_network(path)
    if not (data or loaded.config.data):
        raise DataError(f"{path} does not say where its images are: name them with --data")
    images = load_images(
        data or loaded.config.data,
        lambda text: print(text, file=sys.stderr),
        image_size=loaded.config.image_size,
        skip_damaged=loaded.config.skip_damaged,
    )
    if images.classes != loaded.classes:
        known, found = (
            ", ".join(names[:SHOWN]) + " …" * (len(names) > SHOWN)
            for names in (loaded.classes, images.classes)
        )
        raise DataError(f"the checkpoint knows {known}; the images are {found}")
    device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    half = device.type == "cuda" and uses_half(loaded.config, device)
    return (
        evaluate(
            loaded.network.to(device),
            images.test,
            loaded.config.tta,
            half,
            workers=worker_count(loaded.config),
        ),
        loaded,
        images.sha256,
    )


def uses_half(config: TrainConfig, device: torch.device) -> bool:
    """bf16 where the recipe asks for it, or leaves it open on a GPU that computes in it (Ampere and
    newer)."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    return config.precision == "bf16-mixed"


def as_json(evaluation: Evaluation, classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "test_accuracy": evaluation.accuracy,
        "test_loss": evaluation.loss,
        "test_images": evaluation.count,
        "uneven": evaluation.uneven,
        "macro": asdict(evaluation.macro()),
        "scores": {
            name: asdict(score) for name, score in zip(classes, evaluation.scores(), strict=True)
        },
        "per_class": dict(zip(classes, evaluation.per_class(), strict=True)),
        "confusion": evaluation.confusion.tolist(),
        "calibration_error": (
            evaluation.answers.calibration_error() if evaluation.answers else None
        ),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate",
        description="Accuracy of a checkpoint on the test images.",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="best.ckpt, last.ckpt, weights.pt or a run's folder",
    )
    parser.add_argument(
        "--data",
        default="",
        help="as for the training; default: what the checkpoint was trained on (not of weights.pt)",
    )
    parser.add_argument("--accelerator", choices=("auto", "cpu"), default="auto")
    parser.add_argument(
        "--json",
        action="store_true",
        help="also per-class accuracy and the confusion matrix, as JSON alone",
    )
    options = parser.parse_args(arguments)
    try:
        evaluation, loaded, sha256 = evaluate_checkpoint(
            options.checkpoint, options.data, options.accelerator
        )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DATA
    if options.json:
        print(json.dumps(as_json(evaluation, loaded.classes) | {"data_sha256": sha256}))
        return 0
    print(f"test_accuracy {evaluation.shown()}")
    print(table(evaluation, loaded.classes))
    print(f"confusion matrix over {evaluation.count} images, rows are true classes:")
    for row in evaluation.confusion.tolist():
        print("  " + " ".join(f"{cell:5d}" for cell in row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
