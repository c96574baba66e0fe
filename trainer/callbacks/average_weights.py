"""Exponential moving average of the weights, by Lightning's callback, resumable from anywhere."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class AverageWeights(WeightAveraging):
    """Validates with averaged weights, and leaves them in the module and in checkpoints, as
    Lightning's does. What that leaves open, shown in tests/unit/test_trainer_finetune.py:

    - A checkpoint from within a validation has the trained weights and the averaged ones in each
      other's place: they have changed places for as long as it validates.
    - `test(ckpt_path=…)` of the trainer that has fitted tests the weights that were trained last.
    - The first weights count for long: here the average is that of all steps until there are
      enough of them.

    To be named before the callbacks that save within an epoch.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, trained: Tensor, steps: Tensor) -> Tensor:
            return averaged + (trained - averaged) * max(1 - decay, 9 / (10 + int(steps)))

        super().__init__(avg_fn=average)
        self.swapped = False

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self.swapped = self._average_model is not None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self.swapped = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self.swapped:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)
            return
        self._swap_models(pl_module)
        checkpoint["state_dict"] = pl_module.state_dict()
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        for name in ("state_dict", "current_model_state", "averaging_state"):
            checkpoint[name] = copy.deepcopy(checkpoint[name])  # they would change places, too
        self._swap_models(pl_module)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
