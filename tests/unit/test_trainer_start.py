"""What is found wrong, and what is said, before a training takes its time."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.training import tiny_config, tiny_data
from trainer import train as cli
from trainer.training import train

pytestmark = pytest.mark.usefixtures("quiet_trainer")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--network", "nowhere.at_all:small"], "network nowhere.at_all:small can't be had"),
        (["--network", "torchvision:resnet_18"], "network torchvision:resnet_18 can't be had"),
        (["--network", "timm:resnet18"], "pip install timm"),
        (["--logger", "wandb"], "logger wandb: the package is not installed: pip install wandb"),
        (["--run_dir", "used"], "used holds a training already"),
    ],
)
def test_what_is_not_there_is_told_before_images_are_decoded(
    words: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("timm", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    Path("used").mkdir()
    Path("used", "summary.json").write_text("{}")

    def decoding(*words: Any, **named: Any) -> None:
        raise AssertionError("the images are decoded")

    monkeypatch.setattr("trainer.data.sources.load_images", decoding)
    assert cli.main(["--accelerator", "cpu", "--data", "synthetic", *words]) == 2
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1 and not Path("runs").exists()


def test_a_batch_larger_than_the_set_is_told_and_counts_images_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(batch_size=100_000, learning_rate_batch=0, max_epochs=2)
    summary = train(config, tiny_data(80, 20), tmp_path)
    out = capsys.readouterr().out
    assert "warning: a step takes 100000 images, and there are 72 to train on" in out
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    for row in rows:  # the seconds are those of the validation, too
        assert 71 < float(row["images_per_s"]) * float(row["seconds"]) < 10_000
    rates = [float(row["images_per_s"]) for row in rows]
    assert min(rates) <= summary["images_per_s"] * 1.001 <= max(rates) * 1.002
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_the_package_is_a_command_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trainer", "--recipe", "demo", "--print_config"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("trainer", run_name="__main__")
    assert ended.value.code == 0 and "recipe: demo" in capsys.readouterr().out
