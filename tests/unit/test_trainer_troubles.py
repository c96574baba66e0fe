"""Out of memory and divergence: healed where they can be, said aloud, and ended with a reason where
they can't."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import speed_config, tiny_config, tiny_data, weights_of
from trainer import options
from trainer import train as cli
from trainer.callbacks import FindDivergence, Stopped, StopWhenAsked, find_divergence
from trainer.checkpoints import load_checkpoint
from trainer.config import TrainConfig
from trainer.model import Classifier
from trainer.networks import ResidualCNN, SpeedCNN
from trainer.options import TrainError
from trainer.training import train as train_once

pytestmark = pytest.mark.usefixtures("quiet_trainer")
DATA = tiny_data()
PLAIN = tiny_config(mixup_prob=1.0, crop_padding=2, max_epochs=2)
SPEED = speed_config(max_epochs=2)


# -- out of memory


def memory_for(
    monkeypatch: pytest.MonkeyPatch, images: int, error: Callable[[], BaseException]
) -> list[int]:
    """Training on more images at a time runs out of memory. Returns the sizes that went well."""
    sizes: list[int] = []
    for kind in (ResidualCNN, SpeedCNN):
        original = kind.forward

        def forward(self: Any, x: torch.Tensor, original: Any = original) -> torch.Tensor:
            if self.training and len(x) > images:
                raise error()
            if self.training:
                sizes.append(len(x))
            out: torch.Tensor = original(self, x)
            return out

        monkeypatch.setattr(kind, "forward", forward)
    return sizes


def on_gpu() -> BaseException:
    return torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def on_cpu() -> BaseException:
    return RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you"
        " tried to allocate 1 bytes"
    )


@pytest.mark.parametrize("config", [PLAIN, SPEED], ids=["adam", "muon"])
@pytest.mark.parametrize("error", [on_gpu, on_cpu])
def test_smaller_parts_give_the_same_training_as_accumulation(
    config: TrainConfig,
    error: Callable[[], BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Batches of 40 in four parts of 10, as batches of 10 accumulated four times: BatchNorm sees 10
    images both times."""
    with monkeypatch.context() as patched:
        sizes = memory_for(patched, 10, error)
        summary = train_once(config, DATA, tmp_path / "healed")
    out = capsys.readouterr().out
    assert (
        "out of memory: batches of 40 images are cut to 20, accumulated 2 times; the effective"
        " batch stays 40" in out
    )
    assert (
        "out of memory: batches of 20 images are cut to 10, accumulated 4 times; the effective"
        " batch stays 40" in out
    )
    assert out.count("out of memory") == 2, "once for all steps to come"
    assert set(sizes) == {10} and len(sizes) == 2 * 9 * 4
    assert summary["parts"] == 4 and summary["effective_batch"] == 40

    accumulating = dataclasses.replace(config, batch_size=10, accumulate_grad_batches=4)
    other = train_once(accumulating, DATA, tmp_path / "accumulating")
    assert other["effective_batch"] == 40 and other["learning_rate"] == pytest.approx(
        summary["learning_rate"]
    )
    healed, wanted = (
        weights_of(tmp_path / name / "checkpoints" / "last.ckpt")
        for name in ("healed", "accumulating")
    )
    assert all(torch.allclose(healed[name], wanted[name], atol=1e-5) for name in wanted)


def gradient_norms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Of each step, before clipping."""
    norms: list[float] = []

    def clip(self: Classifier, *arguments: Any, **named: Any) -> None:
        gradients = [p.grad.norm() for p in self.network.parameters() if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))

    monkeypatch.setattr(Classifier, "configure_gradient_clipping", clip)
    return norms


def test_gradients_are_of_the_whole_batch_s_mean_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = gradient_norms(monkeypatch)
    train_once(PLAIN, DATA, tmp_path / "whole")
    whole = norms[0]
    norms.clear()
    train_once(
        dataclasses.replace(PLAIN, batch_size=20, accumulate_grad_batches=2),
        DATA,
        tmp_path / "halves",
    )
    assert norms[0] == pytest.approx(whole, rel=0.4), (
        "but for BatchNorm, which sees half as many images at a time"
    )


def test_what_was_done_before_memory_ran_out_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs out in the second part of the first step, when the first part's gradients and loss
    are there already."""
    halves = dataclasses.replace(PLAIN, batch_size=20, accumulate_grad_batches=2, max_epochs=1)
    original = ResidualCNN.forward
    calls = []

    def forward(self: ResidualCNN, x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if len(calls) == 2:
            raise on_gpu()
        return original(self, x)

    norms = gradient_norms(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(ResidualCNN, "forward", forward)
        train_once(halves, DATA, tmp_path / "healed")
    healed = norms[0]
    norms.clear()
    assert calls[:6] == [20, 20, 10, 10, 10, 10]
    train_once(
        dataclasses.replace(halves, batch_size=10, accumulate_grad_batches=4),
        DATA,
        tmp_path / "quarters",
    )
    assert healed == pytest.approx(norms[0], rel=1e-4)
    losses = [
        load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["training"]["history"][0]
        for name in ("healed", "quarters")
    ]
    assert losses[0]["train_loss"] == pytest.approx(losses[1]["train_loss"], rel=1e-5)


def test_parts_are_kept_when_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        memory_for(patched, 20, on_gpu)
        train_once(PLAIN, DATA, tmp_path / "run")
        saved = tmp_path / "run" / "checkpoints" / "last.ckpt"
        capsys.readouterr()
        sizes = memory_for(patched, 20, on_gpu)
        train_once(dataclasses.replace(PLAIN, max_epochs=3), DATA, tmp_path / "run", saved)
    assert set(sizes) == {20} and "out of memory" not in capsys.readouterr().out


def test_where_no_part_fits_it_ends_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_for(monkeypatch, 0, on_gpu)
    with pytest.raises(
        TrainError, match=r"out of memory: CUDA out of memory\..*; lower batch_size"
    ) as caught:
        train_once(PLAIN, DATA, tmp_path / "run")
    assert caught.value.code == options.EXIT_MEMORY == 6


def test_another_error_is_no_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_for(monkeypatch, 10, lambda: RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        train_once(PLAIN, DATA, tmp_path / "run")


# -- divergence


def infinite_at(monkeypatch: pytest.MonkeyPatch, step: int, times: int) -> list[tuple[int, float]]:
    """The loss of a step is NaN, so often. Returns (step, learning rate) of all steps."""
    seen: list[tuple[int, float]] = []
    left = [times]
    original = Classifier.loss

    def loss(self: Classifier, *arguments: Any) -> torch.Tensor:
        seen.append((self.global_step, self.trainer.optimizers[0].param_groups[0]["lr"]))
        value = original(self, *arguments)
        if self.global_step == step and left[0]:
            left[0] -= 1
            return value * math.nan
        return value

    monkeypatch.setattr(Classifier, "loss", loss)
    # As if each epoch took longer than the time between two checkpoints.
    monkeypatch.setattr("trainer.checkpoints.APART_S", 0.0)
    return seen


def rates(seen: list[tuple[int, float]], step: int) -> list[float]:
    return [rate for place, rate in seen if place == step]


def test_a_loss_that_is_not_finite_goes_back_with_half_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = infinite_at(monkeypatch, 13, 2)
    summary = train_once(dataclasses.replace(PLAIN, max_epochs=3), DATA, tmp_path / "run")
    out = capsys.readouterr().out
    for scale in ("0.5", "0.25"):
        assert (
            f"diverged: the loss is not finite in epoch 2; going on from epoch 1 with {scale} of"
            " the learning rate" in out
        )
    first, second, third = rates(seen, 13)
    assert second / first == pytest.approx(0.5) and third / first == pytest.approx(0.25)
    assert len(rates(seen, 8)) == 1 and len(rates(seen, 9)) == 3, (
        "the first epoch was not trained again"
    )
    assert summary["restores"] == 2 and summary["epochs"] == 3
    assert all(
        math.isfinite(float(value.double().sum()))
        for value in weights_of(tmp_path / "run" / "checkpoints" / "last.ckpt").values()
    )
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 4


def test_it_goes_back_to_a_state_that_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One saved within the epoch that went wrong may carry the seed of it."""
    seen = infinite_at(monkeypatch, 13, 1)
    monkeypatch.setattr("trainer.callbacks.exact_resume.SAVE_EVERY_S", 0.0)
    train_once(PLAIN, DATA, tmp_path / "run")
    assert [len(rates(seen, step)) for step in (8, 9, 12)] == [1, 2, 2]


def test_without_a_validation_it_goes_back_to_the_last_epoch_s_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no best checkpoint, and what was saved within the epoch that went wrong must not
    stand in the last one's place: all would begin anew."""
    seen = infinite_at(monkeypatch, 13, 1)
    monkeypatch.setattr("trainer.callbacks.exact_resume.SAVE_EVERY_S", 0.0)
    config = dataclasses.replace(PLAIN, validation_fraction=0.0, patience=0)
    train_once(config, DATA, tmp_path / "run")
    assert "going on from epoch 1 with 0.5" in capsys.readouterr().out
    assert [len(rates(seen, step)) for step in (8, 11, 12)] == [1, 2, 2]


def test_it_starts_anew_where_nothing_good_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    infinite_at(monkeypatch, 3, 1)
    assert train_once(PLAIN, DATA, tmp_path / "run")["restores"] == 1
    assert "going on from the beginning with 0.5 of the learning rate" in capsys.readouterr().out


def test_a_third_divergence_ends_it_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infinite_at(monkeypatch, 13, 3)
    with pytest.raises(
        TrainError,
        match=(
            "the loss is not finite in epoch 2; 2 attempts with a lower learning rate did not help"
        ),
    ) as caught:
        train_once(PLAIN, DATA, tmp_path / "run")
    assert caught.value.code == options.EXIT_DIVERGED == 5
    assert not (tmp_path / "run" / "summary.json").exists()
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["training"]["epoch"] == 1


def test_a_stop_does_not_replace_a_good_state_by_a_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infinite_at(monkeypatch, 13, 1)
    monkeypatch.setattr(find_divergence, "EVERY_S", math.inf)  # not found by the way
    original = StopWhenAsked.on_train_batch_end

    def stop(self: StopWhenAsked, trainer: Any, *rest: Any) -> None:
        self.asked = trainer.global_step >= 15
        original(self, trainer, *rest)

    monkeypatch.setattr(StopWhenAsked, "on_train_batch_end", stop)
    with pytest.raises(Stopped):
        train_once(PLAIN, DATA, tmp_path / "run")
    saved = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["training"]
    assert (saved["epoch"], saved["batch"]) == (1, 0)


def test_a_step_that_ruins_the_weights_at_the_very_end_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of that step is finite still; without a validation split nothing else would tell."""
    original = FindDivergence.on_train_batch_end
    ruined: list[Any] = []

    def batch_end(self: FindDivergence, trainer: Any, module: Classifier, *rest: Any) -> None:
        if trainer.global_step == 2 * trainer.num_training_batches and not ruined:
            ruined.append(True)
            next(module.network.parameters()).data.fill_(math.inf)
        original(self, trainer, module, *rest)

    monkeypatch.setattr(FindDivergence, "on_train_batch_end", batch_end)
    summary = train_once(
        dataclasses.replace(PLAIN, validation_fraction=0.0, patience=0), DATA, tmp_path / "run"
    )
    assert ruined and summary["restores"] == 1


def test_an_accuracy_that_falls_to_chance_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The accuracies are made up: well above chance, then at chance, once."""
    made_up = iter([0.9, 0.25, 0.9, 0.9])

    def validation_end(self: Classifier) -> None:
        self.log("val_accuracy", next(made_up))
        self.log("val_loss", 1.0)

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", validation_end)
    monkeypatch.setattr("trainer.checkpoints.APART_S", 0.0)
    summary = train_once(dataclasses.replace(PLAIN, max_epochs=3), DATA, tmp_path / "run")
    assert (
        "diverged: the accuracy fell to chance in epoch 2; going on from epoch 1 with 0.5"
        in capsys.readouterr().out
    )
    assert summary["restores"] == 1 and summary["epochs"] == 3


def test_the_command_ends_with_5_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    infinite_at(monkeypatch, 1, 9)
    monkeypatch.setattr("trainer.data.sources.make_synthetic", lambda: DATA)
    code = cli.main(
        [
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
            "--run_dir",
            str(tmp_path / "run"),
            "--max_restores",
            "1",
        ]
    )
    err = capsys.readouterr().err
    assert (
        code == 5
        and err.count("\n") == 1
        and err.startswith("error: the loss is not finite in epoch 1; 1 attempts")
    )
