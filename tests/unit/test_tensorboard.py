"""TensorBoard as `fab tensorboard` starts it."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

import pytest

from remote.watching import tensorboard

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


CHATTY = """#!/bin/sh
exec {python} -c '
import http.server, sys
sys.stderr.write("warning\\n" * 100_000)
address = ("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1]))
http.server.HTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever()
' "$@"
"""


def test_one_that_says_much_is_served_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(CHATTY.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(tensorboard, "START_S", 10.0)
    board, _ = tensorboard.start(tmp_path / "logs", "r", 0)
    tensorboard.end(board)


def test_a_folder_whose_name_would_be_taken_apart_is_shown_without_one(tmp_path: Path) -> None:
    assert tensorboard.logs_option(Path("a,b"), "r") == ["--logdir", "a,b"]
    assert tensorboard.logs_option(tmp_path, "r") == ["--logdir_spec", f"r:{tmp_path}"]
