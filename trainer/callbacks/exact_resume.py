"""A training that was cut off anywhere goes on as if it had not been."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from trainer.callbacks.find_divergence import is_sound

SAVE_EVERY_S = 120.0


class ExactResume(pl.Callback):
    """What Lightning's loops and a loader with `state_dict` leave open, as shown in
    tests/unit/test_trainer_lightning.py:

    - A checkpoint between an epoch's last step and the end of its validation makes Lightning leave
      that validation out. Here it is done again, from its beginning.
    - Random numbers (dropout and the like) follow from `seed`, process and step, not from how many
      were drawn before.
    - A training that early stopping had ended trains no further.
    - Another size of batch goes on from the same share of the epoch: `images_per_step` counts all
      processes' images, `steps_per_epoch` belongs to it.

    Every two minutes it also saves to `path`, for epochs that are long.
    """

    def __init__(
        self,
        seed: int,
        path: Path | None = None,
        images_per_step: int = 0,
        steps_per_epoch: int = 0,
    ) -> None:
        self.seed, self.path = seed, path
        self.images_per_step, self.steps_per_epoch = images_per_step, steps_per_epoch
        self.saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"images_per_step": self.images_per_step}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for early in trainer.early_stopping_callbacks:
            if early.wait_count >= early.patience:
                trainer.should_stop = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any
    ) -> None:
        step, rank, device = trainer.fit_loop.total_batch_idx, trainer.global_rank, pl_module.device
        place = (step * 0x9E3779B1 + rank * 0x85EBCA6B + self.seed * 0xC2B2AE35) & 0xFFFFFFFF
        # Not torch.manual_seed, which takes longer than a small network's step.
        torch.default_generator.manual_seed(place)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(place)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any
    ) -> None:
        if self.path is None or trainer.is_last_batch:
            return
        due = time.monotonic() - self.saved >= SAVE_EVERY_S
        if trainer.world_size > 1:
            # Seldom, for it makes GPUs wait for one another.
            due = not trainer.global_step % 10 and bool(trainer.strategy.broadcast(due))
        if due:
            self.saved = time.monotonic()
            if is_sound(pl_module):
                trainer.save_checkpoint(self.path)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if is_validation_ahead(trainer):
            expect_validation(checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        states, now = checkpoint["callbacks"], self.images_per_step
        before = states.get(self.state_key, {}).get("images_per_step", 0)
        if before and now and before != now:
            rescale(checkpoint, before / now, self.steps_per_epoch)
        for early in trainer.early_stopping_callbacks:  # which would take back a new patience
            if early.state_key in states:
                states[early.state_key]["patience"] = early.patience


def is_validation_ahead(trainer: pl.Trainer) -> bool:
    """All steps of the epoch are done, and its validation has not come to its end."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    wanted = trainer.enable_validation and sum(trainer.num_val_batches) > 0
    every = trainer.check_val_every_n_epoch or 1
    finished = (
        trainer.validating
        and batches.is_last_batch
        and 0 < batches.current.ready == batches.current.completed
    )
    return (
        wanted
        and not (trainer.current_epoch + 1) % every
        and trainer.is_last_batch
        and epochs.processed < epochs.started
        and not finished
    )


def expect_validation(fit_loop: dict[str, Any]) -> None:
    """Lightning's own state for an interrupted validation, with none of its batches done."""
    steps = fit_loop["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        steps[part]["completed"] = steps[part]["processed"]
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    nothing = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    validation["total"] = {**nothing, "ready": 1, "started": 1}
    validation["current"] = dict(nothing)
    validation["is_last_batch"] = False


def rescale(checkpoint: dict[str, Any], factor: float, steps_per_epoch: int) -> None:
    """`factor` times as many steps as before make up the same share of an epoch."""
    fit_loop = checkpoint["loops"]["fit_loop"]
    epochs = fit_loop["epoch_progress"]["current"]["processed"]
    batches = fit_loop["epoch_loop.batch_progress"]
    # Between epochs Lightning still has the last one's batches.
    within = fit_loop["epoch_progress"]["current"]["started"] > epochs
    done = batches["current"]["processed"] if within else 0
    batch = min(steps_per_epoch, int(done * factor))
    step = epochs * steps_per_epoch + batch
    for part, count in (("current", batch if within else steps_per_epoch), ("total", step)):
        late = batches[part]["processed"] - batches[part]["completed"]
        batches[part] = dict.fromkeys(batches[part], count)
        batches[part]["completed"] -= late
    optimizer = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    optimizer["step"]["total"] = {"ready": step, "completed": step}
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    for loader in fit_loop["state_dict"].get("combined_loader", []):
        loader["batch"] = batch
    for scheduler in checkpoint["lr_schedulers"]:
        scheduler["last_epoch"] = step
    checkpoint["global_step"] = step
