"""A training that goes on in another way than it began: with other values, other images, later."""

from __future__ import annotations

import csv
import dataclasses
import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import (
    finetune_config,
    signals_kept,
    speed_config,
    tiny_config,
    tiny_data,
)
from trainer import train as cli
from trainer.callbacks import StopWhenAsked
from trainer.checkpoints import load_checkpoint, save_whole
from trainer.config import TrainConfig
from trainer.data.images import ImageData
from trainer.training import train as train_once

pytestmark = pytest.mark.usefixtures("quiet_trainer")
DATA = tiny_data(200, 40)
# The rate stays the same for all of an epoch, and for all of them.
EVEN = tiny_config(max_epochs=1, schedule="triangle", final_fraction=1.0, mixup_prob=0)
PLACE = Path("checkpoints", "last.ckpt")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("begun")
    with signals_kept():
        train_once(EVEN, DATA, place)
    return place


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


def go_on(run: Path, data: ImageData = DATA, **changes: Any) -> dict[str, Any]:
    config = dataclasses.replace(EVEN, **{"max_epochs": 2, **changes})
    return train_once(config, data, run, run / PLACE)


def groups_of(run: Path) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = load_checkpoint(run / PLACE)["optimizer_states"][0][
        "param_groups"
    ]
    return groups


def test_another_rate_and_decay_are_trained_with_and_told(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = go_on(run, learning_rate=0.01, weight_decay=0.5, batch_size=20)
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert float(rows[1]["learning_rate"]) == summary["learning_rate"] == pytest.approx(0.003125)
    assert float(rows[0]["learning_rate"]) == pytest.approx(0.000625)
    assert {(g["weight_decay"], g["initial_lr"]) for g in groups_of(run)} == {(0.5, 0.003125)}
    told = "batch_size 20 instead of 40, learning_rate 0.01 instead of 0.001"
    assert f"from here on: max_epochs 2 instead of 1, {told}" in capsys.readouterr().out
    assert told in summary["changes"][0] and told in (run / "report.md").read_text()


def test_what_changes_once_is_told_for_ever(run: Path) -> None:
    go_on(run, weight_decay=0.5)
    summary = go_on(run, weight_decay=0.5, max_epochs=3)
    assert [text.partition(":")[0] for text in summary["changes"]] == [
        "after 4 steps",
        "after 8 steps",
    ]


@pytest.mark.parametrize(
    ("config", "changes", "decays"),
    [
        (speed_config(), {"momentum": 0.5, "weight_decay": 0.1}, [0.0, 2.0, 20.0]),
        (finetune_config(weight_decay=0.0), {"weight_decay": 0.3}, [0.0, 0.3]),
    ],
)
def test_every_group_of_an_optimizer_has_the_new_values(
    config: TrainConfig, changes: dict[str, Any], decays: list[float], tmp_path: Path
) -> None:
    train_once(dataclasses.replace(config, max_epochs=1), DATA, tmp_path)
    config = dataclasses.replace(config, max_epochs=2, **changes)
    train_once(config, DATA, tmp_path, tmp_path / PLACE)
    name = "decay" if config.optimizer == "muon" else "weight_decay"
    assert sorted({group[name] for group in groups_of(tmp_path)}) == pytest.approx(decays)
    if config.optimizer == "muon":
        assert {group["momentum"] for group in groups_of(tmp_path)} == {0.5, 0.6}


def test_a_rate_that_a_divergence_has_lowered_stays_lowered(run: Path) -> None:
    content = load_checkpoint(run / PLACE)
    content["callbacks"]["FindDivergence"]["rate_scale"] = 0.25
    save_whole(content, run / PLACE)
    go_on(run, learning_rate=0.002)
    assert {group["initial_lr"] for group in groups_of(run)} == {0.002 * 40 / 64 / 4}


def test_other_images_are_not_taken_in_silence(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on(run)
    assert "warning" not in capsys.readouterr().out
    go_on(run, dataclasses.replace(DATA, sha256="of others"), max_epochs=3)
    warning = "warning: the images are not those that this training has had"
    assert capsys.readouterr().out.count(warning) == 1


def test_a_finished_training_says_that_it_is_and_keeps_its_times(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = load_checkpoint(run / PLACE)["training"]
    summary = go_on(run, max_epochs=1)
    assert "all epochs (1) are trained already: only the test is done" in capsys.readouterr().out
    assert summary["seconds"] >= saved["seconds"] > 0
    assert summary["wall_seconds"] > saved["wall_seconds"] >= saved["seconds"]


ARGUMENTS = [
    *("--data", "synthetic", "--accelerator", "cpu", "--widths", "8", "--batch_size", "40"),
    *("--max_epochs", "1"),
]


def test_the_folder_of_a_run_stands_for_its_newest_checkpoint(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.data.sources.make_synthetic", lambda: DATA)
    there = ["--run_dir", str(tmp_path / "run"), "--max_epochs", "2"]
    assert cli.main(["--resume", str(begun), *there]) == 0
    assert f"resuming from {begun / PLACE}" in capsys.readouterr().out
    assert cli.main(["--resume", str(tmp_path / "empty")]) == 2
    (tmp_path / "empty").mkdir()
    assert cli.main(["--resume", str(tmp_path / "empty")]) == 2
    assert "no checkpoint in" in capsys.readouterr().err


@pytest.mark.parametrize("saved", [False, True])
def test_a_full_disk_is_told_with_a_way_that_there_is(
    saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.data.sources.make_synthetic", lambda: DATA)

    def full(self: StopWhenAsked, trainer: Any, *rest: Any) -> None:
        if saved:
            torch.save({}, tmp_path / "checkpoints" / "last.ckpt")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(StopWhenAsked, "on_train_batch_end", full)
    assert cli.main([*ARGUMENTS, "--run_dir", str(tmp_path)]) == 7
    err = capsys.readouterr().err
    assert ("--resume auto" in err) is saved and ("the same command" in err) is not saved
