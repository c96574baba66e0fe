"""TensorBoard's curves on a disk that is full for a while."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.faults import mount_small_disk
from trainer.loggers import TensorBoard


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mount_small_disk(tmp_path / "disk", 1) as disk:
        yield disk


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_curves_that_a_full_disk_does_not_take_end_no_training(small_disk: Path) -> None:
    board = TensorBoard(small_disk, name="", version="logs", flush_secs=0)
    board.log_metrics({"loss": 3.0}, 1)
    board.experiment.flush()
    filling = small_disk / "checkpoint"
    with contextlib.suppress(OSError):
        filling.write_bytes(bytes(2 << 20))
    for step in range(2, 400):
        board.log_metrics({"loss": 2.0, "rate": 0.1}, step)
        time.sleep(0.001)
    filling.unlink()
    for step in range(400, 420):
        board.log_metrics({"loss": 1.0}, step)
    board.finalize("success")
    told = EventAccumulator(str(small_disk / "logs")).Reload().Scalars("loss")
    assert told[0].value == 3.0 and (told[-1].step, told[-1].value) == (419, 1.0)
    assert len(told) < 419, "the disk was full"
