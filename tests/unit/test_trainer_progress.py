"""What a training tells of itself while it goes on: whole files, at most once a second."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import tiny_config
from tests.unit.test_trainer_outputs import DATA
from trainer.model import Classifier
from trainer.progress import EVERY_S, News, Progress
from trainer.training import train as train_once


def test_progress_is_replaced_at_most_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(tmp_path)
    written: list[Any] = []
    for number in range(100):
        now[0] += 0.07
        progress.tell(News("fitting", number, 100))
        if not written or (tmp_path / "progress.json").stat().st_ino != written[-1]:
            written.append((tmp_path / "progress.json").stat().st_ino)
    assert len(written) == 7, "in seven seconds"
    assert EVERY_S == 1.0


def test_progress_that_can_not_be_told_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quota that is used up for a second."""
    monkeypatch.setattr("trainer.progress.EVERY_S", 0.0)
    progress = Progress(tmp_path)
    (tmp_path / "progress.tmp").mkdir()
    progress.tell(News("fitting", 1, 2))
    (tmp_path / "progress.tmp").rmdir()
    progress.tell(News("fitting", 2, 2))
    assert json.loads((tmp_path / "progress.json").read_text())["epoch"] == 2


def test_progress_is_whole_whenever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slower training than usual, read without a pause: the fields that people and `fab` look for
    are all there."""
    original = Classifier.training_step

    def slowly(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(0.1)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", slowly)
    texts: dict[str, None] = {}
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                texts.setdefault((tmp_path / "run" / "progress.json").read_text())
            except FileNotFoundError:
                pass
            time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        train_once(tiny_config(), DATA, tmp_path / "run")
    finally:
        done.set()
        reader.join()
    seen = [json.loads(text) for text in texts]
    assert len(seen) >= 3
    assert all(later["time"] - earlier["time"] > 0.9 for earlier, later in itertools.pairwise(seen))
    names = {
        "phase",
        "time",
        "epoch",
        "max_epochs",
        "step",
        "total_steps",
        "metrics",
        "images_per_s",
        "seconds_left",
        "seconds",
    }
    assert all(value.keys() == names for value in seen)
    assert seen[0]["phase"] == "starting"
    fitting = next(value for value in seen if value["step"])
    assert fitting["max_epochs"] == 3 and fitting["total_steps"] == 27 and 0 < fitting["step"] <= 27
    assert (
        1 <= fitting["epoch"] <= 3
        and 1 < fitting["images_per_s"] < 400
        and 0 <= fitting["seconds_left"] < 60
    )
    assert fitting["metrics"].keys() == {
        "train_loss",
        "train_accuracy",
        "val_accuracy",
        "best_val_accuracy",
    }
