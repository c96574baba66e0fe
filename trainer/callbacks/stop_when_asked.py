"""Ends a training that is asked to stop, with its state saved."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from trainer.callbacks.find_divergence import is_sound

AGREE_EVERY_STEPS = 10
"""GPUs ask each other so often whether to stop: it makes them wait for one another."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The training was asked to stop, and its state is saved."""


class StopWhenAsked(pl.callbacks.Checkpoint):
    """SIGTERM or SIGINT: the step that runs is finished, the state goes to `path`, and Stopped is
    raised out of `fit` or `test`. Lightning's own handlers end with exit code 0 and no checkpoint.

    With ExactResume, `fit(ckpt_path=path)` then goes on as if it had not been stopped, from within
    an epoch and from within a validation.

    It is a Checkpoint, and is to be named after the others: at an epoch's end it comes last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = False

    def install(self) -> None:
        """Take the signals from here on, from within the main thread."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.install()  # Lightning has put its own in the meantime

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        # After an epoch's last step its validation or its end comes at once.
        every = 1 if trainer.strategy.root_device.type == "cpu" else AGREE_EVERY_STEPS
        alone = trainer.world_size == 1
        if not trainer.is_last_batch and (alone or not trainer.global_step % every):
            self.stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        # Alone, a process need not finish; several must stay together.
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.world_size == 1:
            self.stop_if_asked(trainer)

    def on_test_batch_end(self, *rest: Any) -> None:
        self.raise_if_asked()

    def stop_if_asked(self, trainer: pl.Trainer) -> None:
        """Several processes agree on it, so that all of them stop at the same step."""
        asked = self.asked
        if trainer.world_size > 1:
            asked = bool(trainer.strategy.reduce_boolean_decision(asked, all=False))
        if not asked:
            return
        if is_sound(trainer.lightning_module):
            trainer.save_checkpoint(self.path)
        elif trainer.is_global_zero:
            print("not saved: a weight is not finite; the checkpoint before stays", flush=True)
        raise Stopped

    def raise_if_asked(self) -> None:
        """For what comes when the state is saved already."""
        if self.asked:
            raise Stopped
