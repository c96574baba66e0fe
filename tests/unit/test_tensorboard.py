"""TensorBoard as `fab tensorboard` starts it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from remote.runs import tensorboard

pytest.importorskip("tensorboard")


def test_a_run_is_shown_under_its_name(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(tmp_path / "logs"))
    writer.add_event(Event(step=1))
    writer.close()
    board, address = tensorboard.start(tmp_path / "logs", "20261128-040537-mine-b0a0", 0)
    try:
        with urllib.request.urlopen(f"{address}data/runs", timeout=20) as page:
            assert json.load(page) == ["20261128-040537-mine-b0a0/."]
        with urllib.request.urlopen(f"{address}data/environment", timeout=20) as page:
            assert json.load(page)["window_title"] == "20261128-040537-mine-b0a0"
    finally:
        tensorboard.end(board)


def test_a_folder_whose_name_would_be_taken_apart_is_shown_without_one(tmp_path: Path) -> None:
    assert tensorboard.logs_option(Path("a,b"), "r") == ["--logdir", "a,b"]
    assert tensorboard.logs_option(tmp_path, "r") == ["--logdir_spec", f"r:{tmp_path}"]
