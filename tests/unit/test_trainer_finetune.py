"""The recipe `finetune`: which layers are trained, when and how fast, and averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import CSVLogger

from tests.support.training import finetune_config, same_bits, signals_kept, tiny_data
from trainer.callbacks import AverageWeights, ExactResume, Stopped, StopWhenAsked
from trainer.checkpoints import load_checkpoint
from trainer.config import load_config, to_dict
from trainer.data import workers
from trainer.data.data_module import ImageDataModule
from trainer.model import Classifier
from trainer.networks import make_network
from trainer.optimizers import make_optimizer
from trainer.options import TrainError
from trainer.schedule import cosine_factor
from trainer.training import make_loggers, train

pytestmark = pytest.mark.usefixtures("quiet_trainer")
DATA = tiny_data()
PLAIN: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


@pytest.fixture(autouse=True)
def small_batches_to_validate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "EVALUATED", 10)


def test_rates_grow_from_the_first_layers_to_the_last() -> None:
    config = finetune_config(network="torchvision:resnet18", lowest_rate=0.1, weight_decay=0.5)
    network: Any = make_network(config, 4)
    groups = make_optimizer(network, config, 0.01).param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate.keys() == {id(p) for p in network.parameters()}
    stages = [getattr(network.network, f"layer{n}")[0].conv1.weight for n in (1, 2, 3, 4)]
    rates = [
        rate[id(p)] for p in (network.network.conv1.weight, *stages, network.network.fc.weight)
    ]
    assert rates == sorted(rates) and len(set(rates[1:])) == 5
    assert rates[0] == pytest.approx(0.001) and rates[-1] == pytest.approx(0.01)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {decays[id(p)] for p in network.parameters() if p.dim() > 1} == {0.5}
    assert {decays[id(p)] for p in network.parameters() if p.dim() == 1} == {0.0}


def test_adam_has_one_group_for_all_as_before() -> None:
    config = load_config("standard", {"widths": "8,8"})
    network = make_network(config, 4)
    [group] = make_optimizer(network, config, 0.01).param_groups
    assert all(a is b for a, b in zip(group["params"], network.parameters(), strict=True))


def fitted(config: Any, steps: int, *callbacks: pl.Callback) -> Classifier:
    pl.seed_everything(1, verbose=False)
    module = Classifier(to_dict(config), DATA.classes)
    trainer = pl.Trainer(
        **PLAIN, enable_checkpointing=False, max_steps=steps, callbacks=[*callbacks]
    )
    trainer.fit(module, datamodule=ImageDataModule(DATA, config))
    return module


def changed(before: Classifier, after: Classifier) -> set[str]:
    one, other = before.network.state_dict(), after.network.state_dict()
    return {name for name in one if not same_bits(one[name], other[name])}


def test_the_last_layer_is_trained_first_and_what_is_frozen_never() -> None:
    """9 steps an epoch, 3 epochs: the last layer is alone for 10 of 27."""
    config = finetune_config(head_fraction=0.35, frozen_fraction=0.4)
    begun, alone, together = (fitted(config, steps) for steps in (0, 10, 11))
    last = {"network.9.weight", "network.9.bias"}
    statistics = {f"network.4.{name}" for name in ("running_mean", "running_var")}
    moved = changed(begun, alone)
    assert moved == last | statistics | {"network.4.num_batches_tracked"}
    assert changed(alone, together) == moved | {
        "network.3.weight",
        "network.4.weight",
        "network.4.bias",
    }


def test_averaged_weights_are_those_of_all_steps_at_first() -> None:
    seen: list[torch.Tensor] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *rest: Any) -> None:
            seen.append(module.network.network[9].weight.detach().clone())

    module: Any = fitted(finetune_config(), 5, AverageWeights(0.999), Look())
    average = seen[0]
    for steps, weights in enumerate(seen[1:], 1):
        average = average + (weights - average) * 9 / (10 + steps)
    assert torch.allclose(module.network.network[9].weight, average, atol=1e-7)


# -- what Lightning's averaging leaves open


class AskInValidation(pl.Callback):
    """In the second epoch's validation, after its second batch."""

    def __init__(self, stop: StopWhenAsked) -> None:
        self.stop = stop

    def on_validation_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        self.stop.asked = trainer.current_epoch == 1 and rest[3] == 1


@pytest.fixture
def signals() -> Iterator[None]:
    with signals_kept():
        yield


@pytest.mark.parametrize(
    ("average", "exact"),
    [(lambda: AverageWeights(0.9), True), (lambda: EMAWeightAveraging(decay=0.9), False)],
    ids=["ours", "Lightning's own"],
)
def test_a_stop_within_a_validation_is_exact_with_ours_alone(
    average: Any, exact: bool, tmp_path: Path, signals: None
) -> None:
    config = finetune_config()

    def fit(start: Path | None, ask: bool) -> Classifier:
        pl.seed_everything(1, verbose=False)
        module = Classifier(to_dict(config), DATA.classes)
        stop = StopWhenAsked(tmp_path / "last.ckpt")
        callbacks = [average(), ExactResume(1), *([AskInValidation(stop)] if ask else []), stop]
        trainer = pl.Trainer(**PLAIN, max_epochs=3, callbacks=callbacks)
        trainer.fit(module, datamodule=ImageDataModule(DATA, config), ckpt_path=start)
        return module

    whole = fit(None, ask=False)
    with pytest.raises(Stopped):
        fit(None, ask=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {"state_dict", "current_model_state", "averaging_state"} <= saved.keys()
    assert (changed(whole, fit(tmp_path / "last.ckpt", ask=False)) == set()) == exact


def test_what_is_tested_and_given_away_are_the_averaged_weights(
    tmp_path: Path, signals: None
) -> None:
    summary = train(finetune_config(max_epochs=1), DATA, tmp_path)
    best = load_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    trained = best["current_model_state"]
    given = torch.load(tmp_path / "weights.pt", weights_only=True)["state_dict"]
    names = [name for name in given if name.endswith("weight")]
    assert all(torch.equal(given[name], best["state_dict"][name]) for name in names)
    assert not all(torch.equal(given[name], trained[name]) for name in names)
    assert summary["epochs"] == 1


def test_the_cosine_s_ends() -> None:
    assert cosine_factor(0.0, 0.1, 0.2) == 0 and cosine_factor(0.05, 0.1, 0.2) == 0.5
    assert cosine_factor(0.1, 0.1, 0.2) == 1 and cosine_factor(1.0, 0.1, 0.2) == 0.2
    assert cosine_factor(0.55, 0.1, 0.0) == pytest.approx(0.5)
    assert cosine_factor(1.01, 0.0, 0.0) == 0, "a scheduler asks for the step after the last one"


# -- loggers


def test_a_logger_whose_package_is_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(TrainError, match=r"logger wandb: .* pip install wandb") as caught:
        make_loggers(finetune_config(logger="wandb"), tmp_path, None)
    assert caught.value.code == 2


def test_another_logger_gets_the_same_figures_beside_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: None
) -> None:
    class Elsewhere(CSVLogger):
        def __init__(self, name: str, place: Path, id: str) -> None:
            super().__init__(place, "elsewhere", id)

    monkeypatch.setattr("pytorch_lightning.loggers.WandbLogger", Elsewhere)
    train(finetune_config(logger="wandb", max_epochs=1), DATA, tmp_path / "run")
    told = (tmp_path / "run" / "elsewhere" / "run" / "metrics.csv").read_text()
    assert "val_accuracy" in told and "train_loss" in told and "test_accuracy" in told
    assert list((tmp_path / "run" / "logs").glob("events*"))


@pytest.mark.parametrize("server", ["", "http://mlflow.example:5000"])
def test_mlflow_writes_into_the_run_where_no_server_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    """Its own default, a folder of files, is refused by mlflow since version 3."""
    told = {}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setattr(
        "pytorch_lightning.loggers.MLFlowLogger", lambda **given: told.update(given)
    )
    make_loggers(finetune_config(logger="mlflow"), tmp_path / "r", None)
    place = server or f"sqlite:///{tmp_path}/r/mlflow.db"
    assert told == {"run_name": "r", "tracking_uri": place}
