"""Finds out that a training has gone wrong: its loss is not finite, or what was learnt is lost."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from trainer.callbacks.epoch_metrics import epoch_metrics

EVERY_S = 1.0
CHANCE_FACTOR = 1.2
LEARNT_FACTOR = 2.0
"""An accuracy below 1.2 times chance, after one above 2 times chance, has collapsed."""


class Diverged(Exception):
    """The loss is not finite, or what was learnt is lost."""


class FindDivergence(pl.Callback):
    """Raises Diverged out of `fit`: at most a second after a loss that is not finite, and before an
    epoch is validated or saved. `rate_scale` times the learning rate is trained with: halve it, and
    `fit` again from the last good checkpoint (`trainer.train` shows how).

    `classes`: of a classifier, whose accuracy by chance is 1/classes; 0: that is not looked at.
    """

    def __init__(self, classes: int = 0) -> None:
        self.classes = classes
        # For whoever goes back: the share of the learning rate, and how often it was lowered.
        self.rate_scale, self.restores = 1.0, 0
        self.forget()

    def forget(self) -> None:
        self.saved_scale = 1.0
        self.accuracies: list[float] = []
        self.losses: Tensor | None = None
        self.checked = -math.inf

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.forget()  # a checkpoint says more

    def state_dict(self) -> dict[str, Any]:
        return {
            "rate_scale": self.rate_scale,
            "restores": self.restores,
            "accuracies": list(self.accuracies),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved_scale = state_dict["rate_scale"]
        self.rate_scale = min(self.rate_scale, self.saved_scale)
        self.restores = max(self.restores, state_dict["restores"])
        self.accuracies = list(state_dict["accuracies"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        factor, self.saved_scale = self.rate_scale / self.saved_scale, self.rate_scale
        if factor != 1:
            scale_rates(trainer, factor)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.losses = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *rest: Any
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            # Added up on the device: to look at each would make a GPU wait.
            self.losses = loss.detach() + (self.losses if self.losses is not None else 0.0)
        # Several processes find it together, at the epoch's end.
        if trainer.world_size == 1 and time.monotonic() - self.checked >= EVERY_S:
            self.check_losses(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check(trainer, pl_module)
        epoch = trainer.current_epoch + 1
        metrics = epoch_metrics(trainer, pl_module)
        if not math.isfinite(metrics.get("val_loss", 0.0)):
            raise Diverged(f"the validation loss is not finite in epoch {epoch}")
        accuracy = metrics.get("val_accuracy", metrics.get("train_accuracy"))
        if self.classes and accuracy is not None:
            self.accuracies.append(accuracy)
            if collapsed(self.accuracies, self.classes):
                raise Diverged(f"the accuracy fell to chance in epoch {epoch}")

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check_losses(trainer)
        if not is_sound(pl_module):
            raise Diverged(f"a weight is not finite after epoch {trainer.current_epoch + 1}")

    def check_losses(self, trainer: pl.Trainer) -> None:
        self.checked = time.monotonic()
        if self.losses is None:
            return
        losses = trainer.strategy.reduce(self.losses, reduce_op="sum")
        if not bool(torch.isfinite(losses)):
            raise Diverged(f"the loss is not finite in epoch {trainer.current_epoch + 1}")


def is_sound(module: torch.nn.Module) -> bool:
    """No weight is infinite or not a number."""
    return all(bool(torch.isfinite(p).all()) for p in module.parameters())


def scale_rates(trainer: pl.Trainer, factor: float) -> None:
    """The learning rates of now and of all that the schedulers will set."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for name in {"lr", "initial_lr"} & group.keys():
                group[name] *= factor
    for config in trainer.lr_scheduler_configs:
        if hasattr(config.scheduler, "base_lrs"):
            config.scheduler.base_lrs = [rate * factor for rate in config.scheduler.base_lrs]


def collapsed(accuracies: Sequence[float], classes: int) -> bool:
    """It had learnt, and now guesses."""
    return (
        len(accuracies) > 1
        and max(accuracies) > LEARNT_FACTOR / classes
        and accuracies[-1] < CHANCE_FACTOR / classes
    )
