"""Several seeds of one training, and what is told of them together."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from tests.support.training import tiny_data
from trainer import train as cli

pytestmark = pytest.mark.usefixtures("quiet_trainer")
DATA = tiny_data()
ARGUMENTS = [
    *("--data", "synthetic", "--accelerator", "cpu", "--widths", "8", "--batch_size", "40"),
    *("--max_epochs", "1"),
]


def test_seeds_are_averaged_and_finished_ones_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.data.sources.make_synthetic", lambda: DATA)
    place = tmp_path / "seeds"
    arguments = [*ARGUMENTS, "--seed", "4", "--repeat", "2", "--run_dir", str(place)]
    assert cli.main(arguments) == 0
    own = [json.loads((place / f"seed-{seed}" / "summary.json").read_text()) for seed in (4, 5)]
    accuracies = [summary["test_accuracy"] for summary in own]
    summary = json.loads((place / "summary.json").read_text())
    assert [summary["seed"] for summary in own] == summary["seeds"] == [4, 5]
    assert summary["test_accuracy"] == pytest.approx(statistics.mean(accuracies))
    assert (
        summary["test_accuracy_std"] == pytest.approx(statistics.stdev(accuracies))
        and summary["test_accuracies"] == accuracies
    )
    # Of one seed alone nothing stands there as if it were all seeds'.
    assert not {"seed", "best_epoch", "checkpoint"} & summary.keys() and not summary["confusion"]
    for name in ("test_loss", "seconds", "wall_seconds"):
        assert summary[name] == pytest.approx(statistics.mean(each[name] for each in own))
    recalls = [each["macro"]["recall"] for each in own]
    assert summary["macro"]["recall"] == pytest.approx(statistics.mean(recalls))
    assert summary["data"] == own[0]["data"] and summary["config"]["seed"] == 4
    assert (
        f"{statistics.mean(accuracies):.4f} ± {statistics.stdev(accuracies):.4f}"
        in capsys.readouterr().out
    )

    (place / "seed-5" / "summary.json").unlink()
    before = (place / "seed-4" / "weights.pt").stat().st_mtime_ns
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "seed 4: done already" in out and "resuming from" in out and out.count("epoch 1/1") == 0
    assert (place / "seed-4" / "weights.pt").stat().st_mtime_ns == before

    assert cli.main([*arguments, "--learning_rate", "0.5"]) == 2
    assert (
        "seed-4 was trained with another learning_rate: give the same values, or another --run_dir"
        in capsys.readouterr().err
    )
