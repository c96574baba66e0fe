"""What a run tells while it goes, and what it leaves behind."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.training import pixels_of, signals_kept, speed_config, tiny_config, tiny_data
from trainer import evaluate as evaluation
from trainer import train as cli
from trainer.callbacks import BestCheckpoint
from trainer.callbacks.find_divergence import collapsed
from trainer.checkpoints import load_checkpoint
from trainer.model import Classifier
from trainer.progress import best_row, point_logs
from trainer.report.pictures import draw_confusion, draw_curves, to_png
from trainer.training import train as train_once

pytestmark = pytest.mark.usefixtures("quiet_trainer")
DATA = tiny_data()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("outputs") / "run"
    with signals_kept():
        train_once(speed_config(tta="shift"), DATA, place)
    return place


def test_a_picture_that_can_not_be_drawn_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of one's own that gives no gradient while it is tested, say."""

    def without_gradient(*_: Any) -> Any:
        raise RuntimeError("element 0 of tensors does not require grad")

    monkeypatch.setattr("trainer.report.mistakes.heat_maps", without_gradient)
    summary = train_once(tiny_config(max_epochs=1), DATA, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert (tmp_path / "run" / "weights.pt").exists()
    assert "there is no report: element 0 of tensors" in capsys.readouterr().out


# -- progress.json


# -- tables, events, summary


def rows_of(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def events_of(run: Path, tag: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / "logs"))
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars(tag)]


def test_a_row_and_an_event_per_epoch_after_a_resumption_too(run: Path, tmp_path: Path) -> None:
    assert [row["epoch"] for row in rows_of(run)] == ["1", "2", "3"]
    assert {name for row in rows_of(run) for name, value in row.items() if not value} == set()
    config = speed_config(max_epochs=2)
    train_once(config, DATA, tmp_path / "run")
    saved = tmp_path / "run" / "checkpoints" / "last.ckpt"
    train_once(dataclasses.replace(config, max_epochs=4), DATA, tmp_path / "run", saved)
    assert [row["epoch"] for row in rows_of(tmp_path / "run")] == ["1", "2", "3", "4"]
    for tag in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
        assert events_of(tmp_path / "run", tag) == [8, 17, 26, 35], "an epoch's last step"
    assert len(events_of(tmp_path / "run", "lr-MuonWithSGD/pg1")) == 4


def test_the_summary_says_what_was_trained_on_what(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert 0 <= summary["test_accuracy"] <= 1 and summary["test_images"] == 120
    assert sum(map(sum, summary["confusion"])) == 120 and list(summary["per_class"]) == list(
        DATA.classes
    )
    assert summary["data"]["train"] == 360 and summary["data"]["validation"] == 40
    assert (
        summary["seed"] == 1
        and summary["epochs"] == summary["max_epochs"] == 3
        and summary["restores"] == 0
    )
    assert set(summary["versions"]) >= {"python", "torch", "torchvision", "pytorch_lightning"}
    assert summary["config"]["tta"] == "shift" and summary["effective_batch"] == 40
    best = max(rows_of(run), key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    assert (
        summary["best_epoch"] == int(best["epoch"])
        and summary["checkpoint"] == "checkpoints/best.ckpt"
    )
    assert (
        load_checkpoint(run / "checkpoints" / "best.ckpt")["training"]["epoch"]
        == summary["best_epoch"]
    )
    assert summary["seconds"] > 0 and summary["wall_seconds"] < 60


def test_the_hash_is_the_data_s(tmp_path: Path) -> None:
    from trainer.data.images import Arrays
    from trainer.data.sources import hash_images

    changed = pixels_of(DATA.train).clone()
    changed[7, 0, 3, 3] ^= 1
    other = dataclasses.replace(DATA, train=Arrays(changed, DATA.train.labels))
    assert hash_images(DATA) == hash_images(tiny_data()) != hash_images(other)


def test_weights_and_checkpoints_are_evaluated_as_the_summary_says(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.data.sources.make_synthetic", lambda: DATA)
    summary = json.loads((run / "summary.json").read_text())
    weights = torch.load(run / "weights.pt", weights_only=True)
    assert (
        weights.keys() == {"state_dict", "hyper_parameters"}
        and (run / "weights.pt").stat().st_size < 100e6
    )
    for path, *data in (
        (run / "weights.pt", "--data", "synthetic"),
        (run / summary["checkpoint"],),
    ):
        assert evaluation.main(["--checkpoint", str(path), *map(str, data)]) == 0
        assert (
            capsys.readouterr().out.splitlines()[0]
            == f"test_accuracy {summary['test_accuracy']:.4f}"
        )
    # weights.pt is given away: it names no place of the machine that made it.
    assert (
        evaluation.main(["--checkpoint", str(run / "weights.pt")]) == 3
        and "name them with --data" in capsys.readouterr().err
    )
    assert str(run).encode() not in (run / "weights.pt").read_bytes()
    assert (
        evaluation.main(["--checkpoint", str(run / "weights.pt"), "--data", "synthetic", "--json"])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert len(told.pop("data_sha256")) == 64
    assert {name: summary[name] for name in told} == told
    assert evaluation.main(["--checkpoint", str(run / "checkpoints" / "last.ckpt")]) == 0


def test_lightning_loads_a_checkpoint_by_itself(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    model = Classifier.load_from_checkpoint(run / summary["checkpoint"], map_location="cpu")
    result = evaluation.evaluate(model.network, DATA.test, "shift")
    assert result.accuracy == summary["test_accuracy"] and model.classes == DATA.classes


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_evaluating_no_checkpoint_is_one_line(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.ckpt"
    if content is not None:
        path.write_bytes(content)
    assert evaluation.main(["--checkpoint", str(path)]) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith(
        f"error: {path} can't be loaded as a checkpoint of this trainer"
    )


def test_evaluating_on_other_classes_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluation.main(["--checkpoint", str(run / "weights.pt"), "--data", "synthetic"]) == 3
    assert "the checkpoint knows pattern 0" in capsys.readouterr().err


@pytest.mark.parametrize("tta", ["none", "flip", "shift"])
def test_evaluation_counts_every_image_once(tta: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.workers.EVALUATED", 50)
    network = Classifier(dataclasses.asdict(tiny_config()), DATA.classes).network
    result = evaluation.evaluate(network, DATA.test, tta)
    assert (
        result.count == 120
        and result.confusion.sum(1).tolist() == torch.bincount(DATA.test.labels).tolist()
    )
    assert network.training


def test_pictures_are_pictures(run: Path) -> None:
    for name in ("curves.png", "confusion.png", "mistakes.png"):
        with Image.open(run / name) as image:
            assert image.format == "PNG" and min(image.size) > 200
            assert len(set(image.convert("L").tobytes())) > 20, "not empty"
    report = (run / "report.md").read_text()
    assert (
        report.startswith("# Test accuracy ")
        and "![curves](curves.png)" in report
        and "synthetic" in report
    )
    assert "\n| 4 | pattern 3 | 30 |" in report and "\n| | **mean** | 120 |" in report
    assert "expected calibration error" in report and "    learning_rate: 0.1\n" in report


def test_pictures_of_little_and_of_much() -> None:
    row = {
        "epoch": 1,
        "train_loss": 1.0,
        "val_loss": None,
        "train_accuracy": None,
        "val_accuracy": None,
        "learning_rate": 0.1,
    }
    for history in ([], [row], [row | {"epoch": number} for number in range(1, 151)]):
        assert to_png(draw_curves(history, {"test_accuracy": 0.5, "best_epoch": None})).startswith(
            b"\x89PNG"
        )
    many = [[1] * 200 for _ in range(200)]
    assert to_png(draw_confusion(many, [str(number) for number in range(200)])).startswith(
        b"\x89PNG"
    )


# -- ./logs


def test_logs_leads_to_the_newest_run_and_leaves_a_folder_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "runs" / name / "logs").mkdir(parents=True)
        point_logs(tmp_path / "runs" / name, Path("logs"))
        assert Path("logs").resolve() == (tmp_path / "runs" / name / "logs").resolve()
    assert not os.path.isabs(os.readlink("logs")), "the folder may be moved"
    os.unlink("logs")
    Path("logs").mkdir()
    point_logs(tmp_path / "runs" / "a", Path("logs"))
    assert not Path("logs").is_symlink()


ARGUMENTS = [
    "--data",
    "synthetic",
    "--accelerator",
    "cpu",
    "--widths",
    "8",
    "--batch_size",
    "40",
    "--max_epochs",
    "1",
]


def test_a_run_without_a_directory_goes_to_runs_and_logs_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainer.data.sources.make_synthetic", lambda: DATA)
    assert cli.main(ARGUMENTS) == 0
    [run] = Path("runs").iterdir()
    assert (run / "summary.json").exists()
    assert Path("logs").resolve() == (run / "logs").resolve() and list(Path("logs").iterdir())


# -- pure decisions


def history(*accuracies: float | None, loss: float = 1.0) -> list[dict[str, Any]]:
    return [
        {
            "epoch": number + 1,
            "val_accuracy": accuracy,
            "val_loss": loss,
            "train_accuracy": accuracy,
        }
        for number, accuracy in enumerate(accuracies)
    ]


def test_the_best_epoch_is_the_first_of_the_highest_accuracy_then_of_the_lower_loss(
    tmp_path: Path,
) -> None:
    """In the checkpoint as in the summary; a training that goes on elsewhere keeps it."""
    rows = history(0.5, 0.7, 0.7, 0.6)
    assert best_row(rows) is rows[1]
    rows[2]["val_loss"] = 0.9
    assert best_row(rows) is rows[2]
    assert best_row(history(None)) is None
    seen = history(0.5, 0.7, 0.7, 0.7, 0.7, 0.6)
    seen[3]["val_loss"] = 0.9
    checkpoint = BestCheckpoint(tmp_path / "a", "best")
    better = []
    for row in seen:
        if row is seen[3]:
            state, checkpoint = checkpoint.state_dict(), BestCheckpoint(tmp_path / "b", "best")
            checkpoint.load_state_dict(state)
        better.append(is_better(checkpoint, row))
    assert better == [True, True, False, True, False, False]


def is_better(checkpoint: BestCheckpoint, row: dict[str, Any]) -> bool:
    """As Lightning asks it, and what it then remembers."""
    found = {name: torch.tensor(row[name]) for name in ("val_accuracy", "val_loss")}
    trainer: Any = SimpleNamespace(
        callback_metrics=found,
        strategy=SimpleNamespace(reduce_boolean_decision=lambda better: better),
    )
    better = checkpoint.check_monitor_top_k(trainer, found["val_accuracy"])
    if better:
        path = f"{checkpoint.dirpath}/best.ckpt"
        checkpoint.best_k_models = {path: found["val_accuracy"]}
        checkpoint.kth_best_model_path = checkpoint.best_model_path = path
        checkpoint.best_model_score = found["val_accuracy"]
    return better


def test_a_collapse_is_a_fall_from_twice_chance_to_chance() -> None:
    assert collapsed([0.3, 0.11], 10)
    assert not collapsed([0.3, 0.13], 10)
    assert not collapsed([0.15, 0.1], 10), "it had not learnt anything yet"
    assert not collapsed([0.1], 10) and not collapsed([], 10)
