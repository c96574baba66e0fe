"""The module in a plain Trainer, and our callbacks with somebody else's module."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from tests.support.training import pixels_of, speed_config, tiny_config, tiny_data
from trainer.callbacks import (
    CutBatches,
    Diverged,
    ExactResume,
    FindDivergence,
    Stopped,
    StopWhenAsked,
    TellProgress,
)
from trainer.checkpoints import WholeFiles
from trainer.config import to_dict
from trainer.data.data_module import ImageDataModule
from trainer.model import Classifier

pytestmark = pytest.mark.usefixtures("quiet_trainer")
DATA = tiny_data()
PLAIN: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def trainer_with(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    checkpoints = any(isinstance(one, Checkpoint) for one in callbacks)
    plain = {**PLAIN, "max_epochs": 2, "enable_checkpointing": checkpoints}
    return pl.Trainer(**{**plain, "callbacks": list(callbacks), **options})


# -- the module in a plain Trainer


@pytest.mark.parametrize("config", [tiny_config(), speed_config()], ids=["adam", "muon"])
def test_it_fits_validates_and_tests_in_a_plain_trainer(config: Any) -> None:
    module, data = Classifier(to_dict(config), DATA.classes), ImageDataModule(DATA, config)
    trainer = trainer_with(reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=2)
    trainer.fit(module, datamodule=data)
    assert trainer.current_epoch == 2 and trainer.global_step == 2 * 9
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy"} <= set(
        trainer.callback_metrics
    )
    [validated], [tested] = trainer.validate(module, data), trainer.test(module, data)
    assert 0 <= validated["val_accuracy"] <= 1 and tested["test_loss"] > 0
    images = pixels_of(DATA.test)
    right = (module.eval()(images).argmax(1) == DATA.test.labels).float().mean()
    assert tested["test_accuracy"] == pytest.approx(float(right), abs=1e-6)


def test_what_a_trainer_can_do_it_does_with_it(tmp_path: Path) -> None:
    """Accumulated and clipped gradients, early stopping, the best checkpoint, a logger; images by
    a loader of torch's own."""
    config = speed_config()
    images = DataLoader(
        TensorDataset(pixels_of(DATA.train), DATA.train.labels), batch_size=20, shuffle=True
    )
    best = ModelCheckpoint(tmp_path / "best", monitor="val_accuracy", mode="max")
    early = EarlyStopping("val_accuracy", min_delta=1.0, patience=1, mode="max")
    trainer = trainer_with(
        early,
        best,
        logger=CSVLogger(tmp_path),
        max_epochs=9,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
    )
    trainer.fit(Classifier(to_dict(config), DATA.classes), images, images)
    assert trainer.current_epoch == 2, "stopped early"
    assert trainer.global_step == 2 * 10
    logged = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "val_accuracy" in logged and "train_loss" in logged
    loaded = Classifier.load_from_checkpoint(best.best_model_path, weights_only=True)
    [again] = trainer.validate(loaded, images)
    assert again["val_accuracy"] == pytest.approx(float(best.best_model_score or -1), abs=1e-6)


# -- somebody else's module, and what Lightning resumes by itself

STEPS, JUDGED = 6, 4


class Shuffled:
    """A loader whose position is part of Lightning's checkpoints."""

    batch_sampler = None

    def __init__(self, count: int) -> None:
        self.count, self.epoch, self.place, self.sampler = count, 0, (0, 0), self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = self.place[1] if self.place[0] == self.epoch else 0
        for batch in range(start, self.count):
            generator = torch.Generator().manual_seed(100 * self.epoch + batch)
            self.place = (self.epoch, batch + 1)
            x = torch.randn(8, 3, generator=generator)
            yield x, (x.sum(1) > 0).long()

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.place[0], "batch": self.place[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = (state["epoch"], state["batch"])


class Theirs(pl.LightningModule):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Dropout(dropout), torch.nn.Linear(8, 2)
        )
        self.right: list[Tensor] = []
        self.judged: list[tuple[int, int, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.right.append((self.layers(batch[0]).argmax(1) == batch[1]).float().mean())

    def on_validation_epoch_end(self) -> None:
        accuracy = float(torch.stack(self.right).mean())
        self.judged.append((self.trainer.current_epoch, len(self.right), accuracy))
        self.right = []
        self.log("val_accuracy", accuracy)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.05)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Cut(pl.Callback):
    """Saves in a hook, and ends the training there."""

    def __init__(self, path: Path, hook: str, epoch: int, batch: int) -> None:
        self.path, self.epoch, self.batch = path, epoch, batch
        setattr(self, hook, self.cut)

    def cut(self, trainer: pl.Trainer, module: Any, *rest: Any) -> None:
        number = next((part for part in rest if type(part) is int), self.batch)
        if (trainer.current_epoch, number) == (self.epoch, self.batch):
            trainer.save_checkpoint(self.path)
            raise Stopped


def fit(
    module: Theirs, *callbacks: pl.Callback, start: Path | None = None, **options: Any
) -> Theirs:
    trainer = trainer_with(*callbacks, **{"max_epochs": 3, "num_sanity_val_steps": 0, **options})
    trainer.fit(module, Shuffled(STEPS), Shuffled(JUDGED), ckpt_path=start)
    return module


def cut_and_resumed(place: tuple[str, int, int], path: Path, ours: bool) -> tuple[bool, bool]:
    """Are the weights the same as of a training that was not cut, and the validations?"""

    def callbacks() -> list[pl.Callback]:
        return [ExactResume(seed=1)] if ours else []

    def begin() -> Theirs:
        pl.seed_everything(1, verbose=False)
        return Theirs(dropout=0.5 if ours else 0.0)

    undisturbed, first, second = begin(), begin(), begin()
    fit(undisturbed, *callbacks())
    with pytest.raises(Stopped):
        fit(first, *callbacks(), Cut(path, *place))
    torch.rand(7)
    fit(second, *callbacks(), start=path)
    same = [
        torch.equal(one, other)
        for one, other in zip(second.parameters(), undisturbed.parameters(), strict=True)
    ]
    return all(same), first.judged + second.judged == undisturbed.judged


PLACES = {
    "within an epoch": (("on_train_batch_end", 1, 2), True),
    "at an epoch's last step": (("on_train_batch_end", 1, STEPS - 1), False),
    "before a validation": (("on_validation_start", 1, 0), False),
    "in a validation": (("on_validation_batch_end", 1, 1), False),
    "in the last validation": (("on_validation_batch_end", 2, 1), False),
    "at a validation's last batch": (("on_validation_batch_end", 1, JUDGED - 1), False),
    "after a validation": (("on_validation_end", 1, 0), True),
    "at an epoch's end": (("on_train_epoch_end", 1, 0), True),
    "at the end": (("on_train_epoch_end", 2, 0), True),
}
"""Where a training is cut, and whether Lightning 2.6 goes on exactly by itself."""


@pytest.mark.parametrize("place", PLACES)
def test_lightning_alone_goes_on_exactly_but_leaves_validations_out(
    place: str, tmp_path: Path
) -> None:
    """The experiment behind ExactResume: what a newer Lightning does by itself can leave it."""
    where, exact = PLACES[place]
    assert cut_and_resumed(where, tmp_path / "cut.ckpt", ours=False) == (True, exact)


@pytest.mark.parametrize("place", PLACES)
def test_with_exact_resume_it_goes_on_exactly_everywhere_with_dropout_too(
    place: str, tmp_path: Path
) -> None:
    assert cut_and_resumed(PLACES[place][0], tmp_path / "cut.ckpt", ours=True) == (True, True)


# -- our callbacks, each alone in somebody else's Trainer


def test_progress_is_told_of_any_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.progress.EVERY_S", 0.0)
    fit(Theirs(), TellProgress(tmp_path, images_per_step=8))
    told = json.loads((tmp_path / "progress.json").read_text())
    assert (told["step"], told["total_steps"], told["max_epochs"]) == (18, 18, 3)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4 and rows[0].startswith("epoch,step,learning_rate,train_loss")


def test_any_module_is_stopped_and_goes_on(tmp_path: Path) -> None:
    stop = StopWhenAsked(tmp_path / "last.ckpt")
    stop.asked = True
    with pytest.raises(Stopped):
        fit(Theirs(), stop)
    stopped = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert stopped["global_step"] == 1
    assert len(fit(Theirs(), start=tmp_path / "last.ckpt").judged) == 3


def test_batches_of_any_module_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without batch norm parts make no difference but rounding's."""
    sizes: list[int] = []
    original = Theirs.training_step

    def step(self: Theirs, batch: Any, batch_idx: int) -> Tensor:
        if len(batch[0]) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(batch[0]))
        return original(self, batch, batch_idx)

    pl.seed_everything(1, verbose=False)
    whole = fit(Theirs())
    pl.seed_everything(1, verbose=False)
    with monkeypatch.context() as patched:
        patched.setattr(Theirs, "training_step", step)
        cut = CutBatches()
        parts = fit(Theirs(), cut)
    assert cut.parts == 4 and set(sizes) == {2} and len(sizes) == 3 * STEPS * 4
    for one, other in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert "training_step" not in vars(parts) and "backward" not in vars(parts)


def test_divergence_of_any_module_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Theirs.training_step

    def step(self: Theirs, batch: Any, batch_idx: int) -> Tensor:
        return original(self, batch, batch_idx) * (torch.inf if self.global_step == 8 else 1)

    monkeypatch.setattr(Theirs, "training_step", step)
    with pytest.raises(Diverged, match="not finite in epoch 2"):
        fit(Theirs(), FindDivergence())


def test_checkpoints_that_follow_too_soon_wait_for_the_end(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Look(pl.Callback):
        def on_train_end(self, *rest: Any) -> None:
            seen.append((tmp_path / "last.ckpt").exists())

    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    fit(Theirs(), last, Look(), plugins=[WholeFiles()])
    assert seen == [False]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 2
