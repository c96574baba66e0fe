"""ModelCheckpoint for the best epoch, as this trainer counts it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor


class BestCheckpoint(pl.callbacks.ModelCheckpoint):
    """`<directory>/<name>.ckpt` of the epoch with the highest `val_accuracy`; of equal ones that
    with the lowest `val_loss`, else the first. A training that goes on in another directory keeps
    what it knows of the best so far, whose file must be brought there."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(
            directory,
            name,
            monitor="val_accuracy",
            mode="max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.best_loss = float("inf")

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        loss = float(trainer.callback_metrics.get("val_loss", 0.0))
        best = self.best_model_score
        tied = best is not None and current is not None and bool(current == best)
        if (tied and loss < self.best_loss) or super().check_monitor_top_k(trainer, current):
            self.best_loss = loss
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss = state_dict.get("best_loss", self.best_loss)
        own = os.path.realpath(str(self.dirpath))
        super().load_state_dict(_moved(state_dict, str(state_dict.get("dirpath")), own))


def _moved(value: Any, before: str, now: str) -> Any:
    """Paths below `before` as paths below `now`, keys of dictionaries too."""
    if isinstance(value, dict):
        return {_moved(key, before, now): _moved(one, before, now) for key, one in value.items()}
    return (
        now + value[len(before) :] if isinstance(value, str) and value.startswith(before) else value
    )
