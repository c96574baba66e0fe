"""Tells how a training goes: progress.json, metrics.csv and a line per epoch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from trainer.callbacks.epoch_metrics import epoch_metrics, position, so_far
from trainer.progress import (
    Clock,
    News,
    Progress,
    best_accuracy,
    epoch_line,
    step_seconds,
    write_metrics,
)

METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


class TellProgress(pl.Callback):
    """Of `train_` and `val_` `loss` and `accuracy` what the module logs. `run_dir`: where to write;
    None in all but the first process.

    `history`, one row per epoch, and `clock` are kept in checkpoints under "training".
    """

    def __init__(self, run_dir: Path | None, images_per_step: int = 1) -> None:
        self.run_dir, self.images_per_step = run_dir, images_per_step
        self.progress = Progress(run_dir)
        self.history: list[dict[str, Any]] = []
        # Of training; and in all, since this attempt began and in those before it.
        self.clock, self.whole = Clock(), Clock()
        self.whole.start()
        # What was changed when the training went on, and when.
        self.changes: list[str] = []
        # On it: when this epoch began, and when its steps were done.
        self.epoch_began = self.trained = 0.0
        self.rate = 0.0
        # When this session's part of the epoch began, and at which step.
        self.mark = (0.0, 0)

    # -- the state

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        epoch, batch = position(trainer)
        checkpoint["training"] = {
            "epoch": epoch,
            "batch": batch,
            "step": trainer.global_step,
            "seconds": self.clock.now(),
            "wall_seconds": self.whole.now(),
            "epoch_began": self.epoch_began,
            "learning_rate": self.rate,
            "changes": list(self.changes),
            "history": copy.deepcopy(self.history),
        }

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.history = []  # a checkpoint has more

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit" and "training" in checkpoint:
            state = checkpoint["training"]
            self.history = copy.deepcopy(state["history"])
            self.rate = state["learning_rate"]
            # What a divergence has lost took its time as well.
            now = self.clock.seconds = max(self.clock.seconds, state["seconds"])
            self.epoch_began = state["epoch_began"] if state["batch"] else now

    # -- Lightning's hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Loading and compilation are not on the training clock.
        self.clock.start()
        self.trained = self.clock.seconds
        self.mark = (self.trained, trainer.global_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epoch_began = self.clock.now()
        self.mark = (self.epoch_began, trainer.global_step)

    def on_train_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any
    ) -> None:
        self.tell(trainer, pl_module, "fitting")
        if trainer.is_last_batch:
            self.trained = self.clock.now()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.tell(trainer, pl_module, "validating")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = epoch_metrics(trainer, pl_module)
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        images = batches.processed * self.images_per_step
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "learning_rate": self.rate,
            **{name: found.get(name) for name in METRICS},
            "seconds": self.clock.now() - self.epoch_began,
            "images_per_s": images / max(1e-9, self.trained - self.epoch_began),
        }
        self.history.append(row)
        if self.run_dir:
            print(epoch_line(row, trainer.max_epochs or 0, best_accuracy(self.history)), flush=True)
            write_metrics(self.run_dir, self.history)

    def on_test_epoch_start(self, *rest: Any) -> None:
        self.clock.start()

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any
    ) -> None:
        self.tell(trainer, pl_module, "testing")

    def on_train_end(self, *rest: Any) -> None:
        self.clock.stop()

    on_test_epoch_end = on_exception = on_train_end  # type: ignore[assignment]  # by any arguments

    def tell(self, trainer: pl.Trainer, pl_module: pl.LightningModule, phase: str) -> None:
        """progress.json, at most once a second."""
        if not self.progress.due():
            return
        step, now = trainer.global_step, self.clock.now()
        epochs, last = trainer.max_epochs or 0, self.history[-1] if self.history else {}
        testing = phase == "testing"
        done, spent = step - self.mark[1], now - self.mark[0]
        total = step if testing else int(trainer.num_training_batches * epochs)
        metrics = {name: last.get(name) for name in METRICS if name != "val_loss"}
        if not testing:
            metrics.update(so_far(pl_module))
        rate = done * self.images_per_step / spent if done and phase == "fitting" else None
        per_step = step_seconds(self.history, spent / done if done else None)
        news = News(
            phase,
            epoch=len(self.history) if testing else min(len(self.history) + 1, epochs),
            max_epochs=epochs,
            step=step,
            total_steps=total,
            metrics={**metrics, "best_val_accuracy": best_accuracy(self.history)},
            images_per_s=None if testing else rate or last.get("images_per_s"),
            seconds_left=None if testing or per_step is None else per_step * (total - step),
            seconds=now,
        )
        self.progress.tell(news)
