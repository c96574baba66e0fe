"""Small trainings for the tests: few made-up images, tiny networks, seconds on a CPU."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoints import load_checkpoint
from trainer.config import TrainConfig, load_config
from trainer.data.images import Arrays, Files, ImageData
from trainer.data.synthetic import make_synthetic

# Tiny networks gain nothing from threads, which wait for each other for long where the machine is
# busy.
torch.set_num_threads(1)

RESIDUAL: dict[str, object] = {
    "data": "synthetic",
    "accelerator": "cpu",
    "deterministic": True,
    "widths": "8,8",
    "max_epochs": 3,
    "batch_size": 40,
    "validation_max": 60,
    "restart_epochs": 2,
}
# As narrow a network needs lower rates than the recipe's.
SPEED: dict[str, object] = {
    "network": "speed",
    "optimizer": "muon",
    "widths": "16,16,16",
    "learning_rate": 0.1,
    "learning_rate_batch": 0,
    "schedule": "triangle",
    "bias_learning_rate": 0.005,
    "head_learning_rate": 0.05,
    "mixup_prob": 0,
    "gradient_clip_val": 0,
    "flip": "alternate",
}


def tiny_config(**changes: object) -> TrainConfig:
    return load_config("standard", {**RESIDUAL, **changes})


def speed_config(**changes: object) -> TrainConfig:
    return tiny_config(**{**SPEED, **changes})


def finetune_config(**changes: object) -> TrainConfig:
    """The recipe with a network of a project's own. Each phase ends within an epoch."""
    tiny = {
        name: value for name, value in RESIDUAL.items() if name not in ("widths", "restart_epochs")
    }
    own = {"network": "tests.support.networks:small", "pretrained": "false", "image_size": 32}
    return load_config(
        "finetune", {**tiny, **own, "resolutions": "24,32", "frozen_fraction": 0.2, **changes}
    )


def tiny_data(train: int = 400, test: int = 120, classes: int = 4) -> ImageData:
    return make_synthetic(train, test, classes)


def pixels_of(images: Arrays | Files) -> torch.Tensor:
    """uint8 [N, 3, size, size], as evaluated."""
    return images.batch(torch.arange(len(images)))


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = load_checkpoint(checkpoint)["state_dict"]
    return content


def what_counts(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Of a checkpoint, without the paths that it names and without Lightning's own counters."""
    names = ("state_dict", "optimizer_states", "lr_schedulers", "training", "global_step")
    averaged = ("current_model_state", "averaging_state")
    return {name: checkpoint[name] for name in (*names, *averaged) if name in checkpoint}


def same_bits(one: Any, other: Any) -> bool:
    """Of whole checkpoints: tensors to the bit, everything else but what a clock has shown."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        timed = ("seconds", "wall_seconds", "images_per_s", "epoch_began")
        return one.keys() == other.keys() and all(
            same_bits(one[name], other[name]) for name in one if name not in timed
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(
            same_bits(a, b) for a, b in zip(one, other, strict=True)
        )
    return bool(one == other)


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """The trainer takes SIGTERM and SIGINT for itself; pytest wants its own back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
