"""Watches over one training: progress, validation, checkpoints, stopping early, stopping when
asked, and divergence."""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from trainer.checkpoints import BEST, LAST, LAST_EVERY_S, WITHIN_EPOCH_EVERY_S, Clock, save_whole
from trainer.data.data_module import worker_count
from trainer.evaluate import evaluate, uses_half
from trainer.model import Classifier, TrainingState
from trainer.progress import Progress, TensorBoard, epoch_line, write_metrics
from trainer.scores import Evaluation
from trainer.warm_up import compile_network

CHANCE_FACTOR = 1.2
LEARNT_FACTOR = 2.0
"""An accuracy below 1.2 times chance, after one above 2 times chance, has collapsed."""
AGREE_EVERY_STEPS = 10
"""GPUs ask each other so often whether to stop: it makes them wait for one another."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The training was asked to stop, and its state is saved."""


class Diverged(Exception):
    """The loss is not finite, or what was learnt is lost."""


class Keeper(pl.Callback):
    """`run_dir`: where this process writes; None for all but the first process."""

    def __init__(self, run_dir: Path | None) -> None:
        self.run_dir = run_dir
        self.progress = Progress(run_dir)
        self.board: TensorBoard | None = None
        self.asked_to_stop = False
        self.clock, self.best_clock = Clock(), Clock()
        # A best state that is not written yet.
        self.best_pending: dict[str, Any] | None = None
        self.session_start = time.monotonic()
        self.session_step = 0
        self.mark: tuple[float, int] = (0.0, 0)

    # -- stopping when asked

    def install(self) -> None:
        """Instead of Lightning's own handlers, which end with exit code 0 and without a
        checkpoint."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.asked_to_stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked_to_stop = True

    def raise_if_asked(self) -> None:
        """For what comes after the training, whose state is saved by then."""
        if self.asked_to_stop:
            raise Stopped

    def stop_if_asked(self, trainer: pl.Trainer, model: Classifier) -> None:
        """Save and raise Stopped; several processes agree on it, so that all of them stop at the
        same step."""
        asked = self.asked_to_stop
        if trainer.world_size > 1:
            asked = bool(trainer.strategy.reduce_boolean_decision(asked, all=False))
        if asked:
            self.save_last(model)
            raise Stopped

    # -- Lightning's hooks

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model = _classifier(pl_module)
        # Loading and compilation are not on the training clock.
        model.data_module.load()
        compile_network(model)
        self.session_start = time.monotonic()
        self.session_step = model.state.step
        model.prepare()
        if self.run_dir:
            self.board = TensorBoard(self.run_dir, model.state.epoch)
        if model.state.batch >= model.data_module.steps_per_epoch:
            # It was stopped while it validated.
            self.finish_epoch(trainer, model)
        if plateaued(model.state.history, model.config.patience, model.config.min_delta):
            trainer.should_stop = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.install()  # Lightning has put its own in the meantime

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model = _classifier(pl_module)
        if not model.state.batch:
            self.account(model.state)
            model.state.epoch_began = model.state.seconds
        self.mark = (time.monotonic(), model.state.step)
        self.tell_if_due(trainer, model, "fitting")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        model = _classifier(pl_module)
        if (
            trainer.world_size == 1
            or model.device.type == "cpu"
            or not model.state.step % AGREE_EVERY_STEPS
        ):
            self.stop_if_asked(trainer, model)
        if self.tell_if_due(trainer, model, "fitting") and trainer.world_size == 1:
            raise_if_not_finite(
                model.sums, model.state.epoch
            )  # several processes find it together, at the epoch's end
        if (
            self.clock.due(WITHIN_EPOCH_EVERY_S)
            and model.state.batch < model.data_module.steps_per_epoch
        ):
            self.save_last(model)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.finish_epoch(trainer, _classifier(pl_module))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.flush_best()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.board:
            self.board.close()
            self.board = None

    # -- the end of an epoch

    def finish_epoch(self, trainer: pl.Trainer, model: Classifier) -> None:
        """Validate, judge, record and save; then the next epoch begins. Also called for an epoch
        that was stopped in its validation."""
        state, sums = model.state, model.sums.clone()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        raise_if_not_finite(sums, state.epoch)
        if not model.is_sound():
            raise Diverged(f"a weight is not finite after epoch {state.epoch + 1}")
        trained_s = self.seconds(state) - state.epoch_began
        validation = self.validate(trainer, model)
        loss, images, right, counted = sums.tolist()
        row = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "learning_rate": model.raw_optimizer.param_groups[0]["lr"],
            "train_loss": loss / max(1.0, images),
            "train_accuracy": right / counted if counted else None,
            "val_loss": validation.loss if validation else None,
            "val_accuracy": validation.accuracy if validation else None,
            "seconds": self.seconds(state) - state.epoch_began,
            "images_per_s": images / max(1e-9, trained_s),
        }
        if validation and not math.isfinite(validation.loss):
            raise Diverged(f"the validation loss is not finite in epoch {row['epoch']}")
        if collapsed([*state.history, row], len(model.classes)):
            raise Diverged(f"the accuracy fell to chance in epoch {row['epoch']}")
        improved = is_best([*state.history, row])
        state.history.append(row)
        state.epoch, state.batch = state.epoch + 1, 0
        self.account(state)
        state.epoch_began = state.seconds
        model.sums.zero_()
        self.record(model, row, improved)
        if plateaued(state.history, model.config.patience, model.config.min_delta):
            model.print(
                f"stopping early: no better validation accuracy for {model.config.patience} epochs"
            )
            trainer.should_stop = True
        ending = trainer.should_stop or state.epoch >= model.config.max_epochs
        if ending or self.clock.due(LAST_EVERY_S):
            self.save_last(model)
        self.stop_if_asked(trainer, model)

    def validate(self, trainer: pl.Trainer, model: Classifier) -> Evaluation | None:
        arrays = model.data_module.validation
        if arrays is None:
            return None
        self.tell_if_due(trainer, model, "validating")

        def stop() -> None:
            # Alone, a process need not finish; several must stay together.
            if trainer.world_size == 1:
                self.stop_if_asked(trainer, model)

        half = uses_half(model.config, model.device)
        # Without the test-time average: it is the same for all epochs, and six times the work.
        return evaluate(
            model.network,
            arrays,
            "none",
            half,
            stop,
            trainer.global_rank,
            trainer.world_size,
            worker_count(model.config),
        )

    def record(self, model: Classifier, row: Mapping[str, Any], improved: bool) -> None:
        if self.run_dir is None:
            return
        history = model.state.history
        print(epoch_line(row, model.config.max_epochs, best_accuracy(history)), flush=True)
        write_metrics(self.run_dir, history)
        if self.board:
            self.board.add(row)
        if improved and row["val_accuracy"] is not None:
            # A copy, since it is written later where one was written a moment ago.
            self.best_pending = copy.deepcopy(model.checkpoint())
            if self.best_clock.due(LAST_EVERY_S):
                self.flush_best()

    # -- files

    def seconds(self, state: TrainingState) -> float:
        """On the training clock, which stands still between a stop and the resumption."""
        return state.seconds + time.monotonic() - self.session_start

    def account(self, state: TrainingState) -> None:
        """What has passed on the training clock goes into the state."""
        now = time.monotonic()
        state.seconds += now - self.session_start
        self.session_start, self.session_step = now, state.step

    def save_last(self, model: Classifier) -> None:
        """Write last.ckpt. What is no longer finite does not replace a good one."""
        self.clock.reset()
        self.account(model.state)
        if self.run_dir:
            self.flush_best()
            if not (math.isfinite(float(model.sums[0])) and model.is_sound()):
                print(
                    "not saved: loss or weights are not finite; the checkpoint before stays",
                    flush=True,
                )
                return
            save_whole(model.checkpoint(), self.run_dir / "checkpoints" / LAST)

    def flush_best(self) -> None:
        """Write the best state where it waits to be written."""
        if self.best_pending is not None and self.run_dir is not None:
            save_whole(self.best_pending, self.run_dir / "checkpoints" / BEST)
            self.best_pending = None
            self.best_clock.reset()

    # -- telling

    def tell_if_due(self, trainer: pl.Trainer, model: Classifier, phase: str) -> bool:
        """Progress of this step, at most once a second; says whether it was told."""
        if not self.progress.due():
            return False
        state, now = model.state, time.monotonic()
        steps = model.data_module.steps_per_epoch
        total = steps * model.config.max_epochs
        loss, images, right, counted = model.sums.tolist()
        since, step = self.mark
        share = model.data_module.share * trainer.world_size
        rate = (state.step - step) * share / (now - since) if state.step > step else None
        done = state.step - self.session_step
        per_step = self.seconds_per_step(state, now, done)
        last = state.history[-1] if state.history else {}
        self.progress.tell(
            phase,
            epoch=min(state.epoch + 1, model.config.max_epochs),
            max_epochs=model.config.max_epochs,
            step=state.step,
            total_steps=total,
            metrics={
                "train_loss": (
                    loss / images if images and math.isfinite(loss) else last.get("train_loss")
                ),
                "train_accuracy": right / counted if counted else last.get("train_accuracy"),
                "val_accuracy": last.get("val_accuracy"),
                "best_val_accuracy": best_accuracy(state.history),
            },
            images_per_s=rate if rate is not None else last.get("images_per_s"),
            seconds_left=per_step * (total - state.step) if per_step is not None else None,
            seconds=self.seconds(state),
        )
        return True

    def tell_testing(self, model: Classifier) -> None:
        state = model.state
        last = state.history[-1] if state.history else {}
        metrics = {
            name: last.get(name) for name in ("train_loss", "train_accuracy", "val_accuracy")
        }
        self.progress.tell(
            "testing",
            epoch=state.epoch,
            max_epochs=model.config.max_epochs,
            step=state.step,
            total_steps=state.step,
            metrics={**metrics, "best_val_accuracy": best_accuracy(state.history)},
            seconds=state.seconds,
        )

    def seconds_per_step(self, state: TrainingState, now: float, done: int) -> float | None:
        """By the last epoch with its validation where there is one, else by this one so far."""
        if state.history:
            row = state.history[-1]
            before = state.history[-2]["step"] if len(state.history) > 1 else 0
            return float(row["seconds"] / max(1, row["step"] - before))
        return (now - self.session_start) / done if done > 0 else None


def raise_if_not_finite(sums: torch.Tensor, epoch: int) -> None:
    if not math.isfinite(float(sums[0])):
        raise Diverged(f"the loss is not finite in epoch {epoch + 1}")


def _classifier(module: pl.LightningModule) -> Classifier:
    assert isinstance(module, Classifier)
    return module


def best_accuracy(history: Sequence[Mapping[str, Any]]) -> float | None:
    return max(
        (row["val_accuracy"] for row in history if row["val_accuracy"] is not None), default=None
    )


def best_row(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The epoch whose checkpoint is kept as the best; None without a validation split."""
    rows = [row for row in history if row["val_accuracy"] is not None]
    return max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]), default=None)


def is_best(history: Sequence[Mapping[str, Any]]) -> bool:
    """The newest epoch is better than all before it; of equal accuracies the lower loss wins."""
    return best_row(history) is history[-1]


def plateaued(history: Sequence[Mapping[str, Any]], patience: int, min_delta: float) -> bool:
    """No gain of more than `min_delta` over the best so far within the last `patience` epochs."""
    if not patience:
        return False
    best, since = -math.inf, 0
    for row in history:
        if row["val_accuracy"] is None or row["val_accuracy"] > best + min_delta:
            best, since = row["val_accuracy"] or best, 0
        else:
            since += 1
    return since >= patience


def collapsed(history: Sequence[Mapping[str, Any]], classes: int) -> bool:
    """It had learnt, and now guesses. Told by the validation accuracy, or where there is none by
    the training's."""
    name = "val_accuracy" if history[-1]["val_accuracy"] is not None else "train_accuracy"
    values = [row[name] for row in history if row[name] is not None]
    if len(values) < 2 or history[-1][name] is None:
        return False
    return bool(max(values) > LEARNT_FACTOR / classes and values[-1] < CHANCE_FACTOR / classes)
