"""What a run tells while it goes: progress.json, metrics.csv, TensorBoard and one line per
epoch."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

EVERY_S = 1.0
COLUMNS = (
    "epoch",
    "step",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "seconds",
    "images_per_s",
)
History = Sequence[Mapping[str, Any]]


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=1).encode() + b"\n")


class Clock:
    """Seconds of training: it stands still until it is started, between a stop and the resumption
    too."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.mark: float | None = None

    def start(self) -> None:
        self.mark = time.monotonic()

    def now(self) -> float:
        if self.mark is not None:
            before, self.mark = self.mark, time.monotonic()
            self.seconds += self.mark - before
        return self.seconds

    def stop(self) -> None:
        self.now()
        self.mark = None


@dataclass(frozen=True)
class News:
    """`phase`: starting, fitting, validating or testing; `seconds`: on the training clock. None is
    what is not known."""

    phase: str
    epoch: int
    max_epochs: int
    step: int | None = None
    total_steps: int | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    images_per_s: float | None = None
    seconds_left: float | None = None
    seconds: float | None = None


class Progress:
    """progress.json, replaced at most once a second. Does nothing where `run_dir` is None: only one
    process tells."""

    def __init__(self, run_dir: Path | None) -> None:
        self.path = run_dir / "progress.json" if run_dir else None
        self.told = -math.inf

    def due(self) -> bool:
        return self.path is not None and time.monotonic() - self.told >= EVERY_S

    def tell(self, news: News) -> None:
        if self.due():
            assert self.path is not None
            self.told = time.monotonic()
            temporary = self.path.with_suffix(".tmp")
            # A disk that is full for a moment is no reason to end a training: it is told anew.
            with contextlib.suppress(OSError):
                # No fsync: this file is worth nothing after a crash.
                temporary.write_text(json.dumps({**asdict(news), "time": time.time()}))
                os.replace(temporary, self.path)


def write_metrics(run_dir: Path, history: History) -> None:
    """metrics.csv, a row per epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows({name: _short(value) for name, value in row.items()} for row in history)
    write_whole(run_dir / "metrics.csv", text.getvalue().encode())


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value


def epoch_line(row: Mapping[str, Any], max_epochs: int, best: float | None) -> str:
    """epoch 3/150  loss 1.234  train 55.21%  val 60.10% (best 60.10%)  12.3 s  3500 images/s"""
    parts = [f"epoch {row['epoch']}/{max_epochs}", f"loss {row['train_loss']:.4f}"]
    if row.get("train_accuracy") is not None:
        parts.append(f"train {100 * row['train_accuracy']:.2f}%")
    if row.get("val_accuracy") is not None:
        parts.append(f"val {100 * row['val_accuracy']:.2f}% (best {100 * (best or 0):.2f}%)")
    parts.append(f"{row['seconds']:.1f} s")
    parts.append(f"{row['images_per_s']:.0f} images/s")
    return "  ".join(parts)


def step_seconds(history: History, this_epoch: float | None) -> float | None:
    """By the last epoch with its validation where there is one, else by this one so far."""
    if not history:
        return this_epoch
    before = history[-2]["step"] if len(history) > 1 else 0
    return float(history[-1]["seconds"] / max(1, history[-1]["step"] - before))


def best_accuracy(history: History) -> float | None:
    found = [row["val_accuracy"] for row in history if row["val_accuracy"] is not None]
    return max(found, default=None)


def best_row(history: History) -> Mapping[str, Any] | None:
    """The epoch whose checkpoint is kept as the best; None without a validation split."""
    rows = [row for row in history if row["val_accuracy"] is not None]
    return max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]), default=None)


def point_logs(run_dir: Path, place: Path) -> None:
    """`./logs` leads to the newest run's logs, for `tensorboard --logdir=./logs`; what is no link
    of ours is left alone."""
    target = (run_dir / "logs").resolve()
    if place.is_symlink() or not place.exists():
        aside = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        try:
            os.symlink(os.path.relpath(target, place.parent.resolve()), aside)
            os.replace(aside, place)
        except OSError:  # Windows without the right to make links
            aside.unlink(missing_ok=True)
