"""Compilation: before the clock starts, without a trace in the training, and no reason to give
up."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import same_bits, speed_config, tiny_config, tiny_data, weights_of
from trainer import training
from trainer.config import TrainConfig, load_config, recipe_names
from trainer.training import train as train_once

pytestmark = pytest.mark.usefixtures("quiet_trainer")
DATA = tiny_data()
SLOW_S = 1.5


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A compiler that takes its time for each new form of input; which were seen."""
    forms: list[tuple[Any, ...]] = []

    def compile_(module: torch.nn.Module) -> None:
        def call(images: torch.Tensor) -> Any:
            form = (tuple(images.shape), images.dtype, module.training)
            if form not in forms:
                forms.append(form)
                time.sleep(SLOW_S)
            return module._call_impl(images)  # type: ignore[no-untyped-call]  # torch's

        module._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    return forms


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(
            compile="true", mixup_prob=0.5, validation_fraction=0, patience=0, max_epochs=2
        ),
        speed_config(
            compile="true", resolutions="24,32", validation_fraction=0, patience=0, max_epochs=2
        ),
    ],
)
def test_compiling_takes_no_time_of_the_clock_and_changes_no_bit(
    config: TrainConfig, compiled: list[Any], tmp_path: Path
) -> None:
    summary = train_once(config, DATA, tmp_path / "compiled")
    assert len(compiled) == 2, (
        "each resolution, or mixed and plain images: nothing is met for the first time in the"
        " training"
    )
    assert summary["wall_seconds"] - summary["seconds"] > 2 * SLOW_S, "it is not on the clock"
    forms = list(compiled)
    plain = train_once(dataclasses.replace(config, compile="false"), DATA, tmp_path / "plain")
    assert compiled == forms and plain["test_accuracy"] == summary["test_accuracy"]
    assert same_bits(
        *(
            weights_of(tmp_path / name / "checkpoints" / "last.ckpt")
            for name in ("compiled", "plain")
        )
    )


def broken(module: torch.nn.Module) -> None:
    def call(images: torch.Tensor) -> Any:
        raise RuntimeError(
            "Failed to find C compiler.\nPlease specify via CC environment variable."
        )

    module._compiled_call_impl = call


def test_where_compiling_fails_the_training_goes_on_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    with pytest.raises(RuntimeError, match="C compiler"):
        train_once(tiny_config(compile="true", max_epochs=1), DATA, tmp_path / "asked")
    monkeypatch.setattr(training, "compile_wanted", lambda config, device: True)
    assert train_once(tiny_config(max_epochs=1), DATA, tmp_path / "auto")["epochs"] == 1
    assert (
        "torch.compile does not work here, going on without it: Failed to find C compiler. Please"
        in capsys.readouterr().out
    )


NARROW: dict[str, dict[str, object]] = {
    "standard": {"widths": "16,16", "batch_size": 20, "max_epochs": 10, "learning_rate": 0.005},
    "demo": {},
    "fast": {"widths": "32,32,32", "batch_size": 50},
    "best": {"widths": "32,32,32", "batch_size": 50, "max_epochs": 6},
    "finetune": {
        "network": "tests.support.networks:small",
        "pretrained": "false",
        "image_size": 32,
        "batch_size": 20,
        "lowest_rate": 1.0,
        "learning_rate": 0.03,
        "max_epochs": 30,
        "ema_decay": 0.9,
    },
}


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_learns(recipe: str, tmp_path: Path) -> None:
    """Narrower and shorter where it would take minutes, and otherwise with its own values."""
    config = load_config(recipe, {"data": "synthetic", "accelerator": "cpu", **NARROW[recipe]})
    summary = train_once(config, DATA, tmp_path / "run")
    assert summary["test_accuracy"] > 0.6, "of four classes"
