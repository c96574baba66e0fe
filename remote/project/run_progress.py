"""Tells `fab status` and `fab follow` how a training is doing. `python -m remote init` puts this
file into a project.

Any script:

    from run_progress import tell, finish
    tell(epoch=3, max_epochs=10, train_loss=0.41, val_accuracy=0.87)      # as often as you like
    finish(test_accuracy=0.91)

PyTorch Lightning:

    from run_progress import lightning_callback
    trainer = Trainer(..., callbacks=[lightning_callback()])

Epochs count from 1, accuracies are fractions. Outside of a run, and in all processes but the first,
it does nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
from typing import Any, NamedTuple

EVERY_S = 1.0
LOSSES = ("train_loss", "loss", "train/loss", "loss/train", "train_loss_epoch", "train_loss_step")
ACCURACIES = (
    "val_accuracy",
    "val_acc",
    "val/accuracy",
    "val/acc",
    "valid_accuracy",
    "valid_acc",
    "accuracy/val",
    "acc/val",
)
TEST_ACCURACIES = ("test_accuracy", "test_acc", "test/accuracy", "test/acc")

_state: dict[str, Any] = {"told": 0.0, "epoch": None, "best": None, "begun": None}


class Place(NamedTuple):
    """How far a training is; what is not known is left out."""

    epoch: int | None = None
    max_epochs: int | None = None
    step: int | None = None
    total_steps: int | None = None
    images_per_s: float | None = None

    @property
    def share(self) -> float | None:
        if self.step is not None and self.total_steps:
            return min(1.0, self.step / self.total_steps)
        if self.epoch is not None and self.max_epochs:
            return min(1.0, self.epoch / self.max_epochs)
        return None


def tell(*, phase: str = "fitting", **figures: Any) -> None:
    """Replace progress.json, at most once a second and at every new epoch. `figures`: those of
    Place, and any others by their names. Shown are train_loss, val_accuracy and its best."""
    directory = _directory()
    if directory is None:
        return
    now = time.monotonic()
    place = Place(**{name: figures.pop(name) for name in Place._fields if name in figures})
    if _state["begun"] is None:
        _state["begun"] = (now, place.share or 0.0)
    accuracy = figures.get("val_accuracy")
    if accuracy is not None and (_state["best"] is None or accuracy > _state["best"]):
        _state["best"] = accuracy
    if now - _state["told"] < EVERY_S and place.epoch == _state["epoch"] and phase == "fitting":
        return
    _state.update(told=now, epoch=place.epoch)
    if place.step is None and place.total_steps is None and place.share is not None:
        place = place._replace(step=place.epoch, total_steps=place.max_epochs)
    values = {
        **place._asdict(),
        "phase": phase,
        "time": time.time(),
        "seconds_left": _seconds_left(now, place.share),
        "metrics": {"best_val_accuracy": _state["best"], **figures},
    }
    _write(os.path.join(directory, "progress.json"), values)


def finish(**figures: Any) -> None:
    """Write summary.json; `test_accuracy` is what status and fetch-results show."""
    directory = _directory()
    if directory is not None:
        _write(os.path.join(directory, "summary.json"), figures)


def _directory() -> str | None:
    if any(
        os.environ.get(name, "0") not in ("", "0")
        for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    ):
        return None
    directory = os.environ.get("REMOTE_RUN_DIR")
    return directory if directory and os.path.isdir(directory) else None


def _seconds_left(now: float, share: float | None) -> float | None:
    begun, before = _state["begun"]
    if share is None or share <= before or now - begun < 2:
        return None
    return float((now - begun) / (share - before) * (1 - share))


def _write(path: str, values: dict[str, Any]) -> None:
    """Whole or not at all; a full disk costs the progress, not the training."""
    try:
        with open(path + ".tmp", "w") as file:
            json.dump(values, file, default=float)
        os.replace(path + ".tmp", path)
    except (OSError, TypeError, ValueError):
        pass


def lightning_callback(loss: str = "", accuracy: str = "") -> Any:
    """A callback for the Lightning that is in use. `loss`, `accuracy`: names that you log; empty:
    the usual ones are looked for."""
    names = ([loss] if loss else LOSSES, [accuracy] if accuracy else ACCURACIES)

    class RunProgress(_lightning().Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            _tell_place(trainer, "fitting", *names)

        def on_validation_end(self, trainer: Any, *_: Any) -> None:
            if trainer.state.fn == "fit":
                _tell_place(trainer, "validating", *names)

        def on_test_end(self, trainer: Any, *_: Any) -> None:
            if trainer.is_global_zero:
                found = _pick(trainer, TEST_ACCURACIES)
                finish(test_accuracy=found, epochs=trainer.current_epoch)

    return RunProgress()


def _lightning() -> Any:
    """The one that was imported, or else is installed: there are two packages of it."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in names:
        if name in sys.modules:
            return sys.modules[name]
    older = importlib.util.find_spec("pytorch_lightning")
    return importlib.import_module(names[1] if older else names[0])


def _tell_place(trainer: Any, phase: str, losses: Any, accuracies: Any) -> None:
    if trainer.is_global_zero and not trainer.sanity_checking:
        total, most = trainer.estimated_stepping_batches, trainer.max_epochs
        tell(
            epoch=trainer.current_epoch + 1,
            max_epochs=most if most and most > 0 else None,
            step=trainer.global_step,
            total_steps=int(total) if total != float("inf") else None,
            phase=phase,
            train_loss=_pick(trainer, losses),
            val_accuracy=_pick(trainer, accuracies),
        )


def _pick(trainer: Any, names: Any) -> float | None:
    metrics = trainer.callback_metrics
    return next((float(metrics[name]) for name in names if name in metrics), None)
