"""What is known of an epoch before the module's own `on_train_epoch_end`."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl


def epoch_metrics(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
    """All that was logged, and what a `train_tally` of the module has counted, which logs it when
    its callbacks are done."""
    # Lightning keeps them as float32: no more digits than those have.
    found = {name: float(f"{float(value):.7g}") for name, value in trainer.callback_metrics.items()}
    tally: Any = getattr(pl_module, "train_tally", None)
    return found | named(tally.compute() if tally else {})


def so_far(pl_module: pl.LightningModule) -> dict[str, float]:
    """What a `train_tally` of this process has counted of the epoch that runs."""
    tally: Any = getattr(pl_module, "train_tally", None)
    counted = named(tally.local() if tally else {})
    return {name: value for name, value in counted.items() if math.isfinite(value)}


def named(values: dict[str, float | None]) -> dict[str, float]:
    return {f"train_{name}": value for name, value in values.items() if value is not None}


def position(trainer: pl.Trainer) -> tuple[int, int]:
    """Epochs that are done, and batches of the one that is not."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return epochs.processed, batches.processed if epochs.processed < epochs.started else 0
