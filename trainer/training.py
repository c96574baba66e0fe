"""One training from its images to its summary, as a Lightning script: data, callbacks, model,
Trainer, fit, test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import loggers
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

from trainer import callbacks as ours
from trainer.callbacks.parts import is_out_of_memory
from trainer.checkpoints import (
    BEST,
    LAST,
    WITHIN,
    WholeFiles,
    load_checkpoint,
    newest_that_loads,
    remove_unfinished,
    share_checkpoints,
    standing,
)
from trainer.config import TrainConfig, to_dict
from trainer.data.data_module import ImageDataModule
from trainer.data.images import ImageData
from trainer.devices import Devices, choose_devices, compile_wanted, keep_freed_memory, torch_device
from trainer.evaluate import uses_half
from trainer.loggers import TensorBoard
from trainer.model import Classifier
from trainer.options import EXIT_DIVERGED, EXIT_MEMORY, TrainError, changed_values, no_logger
from trainer.processes import is_first_process, leave_others, remember_others, say, wait_for_others
from trainer.progress import News
from trainer.report.summary import describe, write_summary


def train(
    config: TrainConfig, data: ImageData, run_dir: Path, start: Path | None = None
) -> dict[str, Any]:
    """Fit, from the checkpoint `start` where there is one, test, and write the summary, which is
    returned (empty in all processes but the first).

    Raises TrainError, and callbacks.Stopped where it was asked to stop.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if is_first_process():
        remove_unfinished(run_dir / "checkpoints")
    devices = choose_devices(config)
    if devices.indices is None:
        keep_freed_memory()
    datamodule = ImageDataModule(data, config, torch_device(devices))
    describe(config, devices, datamodule)
    training = Training(config, devices, datamodule, run_dir)
    if start:
        take_up(load_checkpoint(start), config, training.tell)
    training.tell.progress.tell(News("starting", standing(start)["epoch"], config.max_epochs))
    model = training.fit(start)
    # The first process tests alone, with all threads, so that each image counts once and in its
    # place.
    leave_others()
    return training.test(model) if is_first_process() else {}


class Training:
    """What all attempts at one training share; where it diverges, the next one starts from the last
    good checkpoint."""

    def __init__(
        self, config: TrainConfig, devices: Devices, datamodule: ImageDataModule, run_dir: Path
    ) -> None:
        self.config, self.devices, self.datamodule = config, devices, datamodule
        self.run_dir, self.checkpoints = run_dir, run_dir / "checkpoints"
        self.validated = datamodule.validation is not None
        within = self.checkpoints / (LAST if self.validated else WITHIN)
        self.stop = ours.StopWhenAsked(within)
        self.stop.install()
        images = min(datamodule.share * devices.world, len(datamodule.train_images))
        self.tell = ours.TellProgress(run_dir if is_first_process() else None, images)
        self.cut = ours.CutBatches(config.part_images, at_least=config.accumulate_grad_batches)
        examples = datamodule.example_batches
        compile_first = ours.CompileFirst(config.compile == "true", examples, self.cut)
        self.divergence = ours.FindDivergence(len(datamodule.data.classes))
        self.callbacks: list[pl.Callback] = [
            *([compile_first] if compile_wanted(config, datamodule.device) else []),
            self.cut,
            ours.ExactResume(config.seed, within, images, datamodule.steps_for(devices.world)),
            self.divergence,
            self.tell,
        ]

    def fit(self, start: Path | None) -> Classifier:
        while True:
            model = self.new_model(start)
            trainer = self.new_trainer(start)
            try:
                trainer.fit(model, datamodule=self.datamodule, ckpt_path=start)
                break
            except ours.Diverged as error:
                start = self.last_good(error)
            except (RuntimeError, MemoryError) as error:
                raise out_of_memory(error) from None
            finally:
                remember_others(trainer.strategy.launcher)
        self.stop.raise_if_asked()
        if trainer.should_stop:
            patience = self.config.patience
            say(f"stopped early: no better validation accuracy for {patience} epochs")
        return model

    def new_model(self, start: Path | None) -> Classifier:
        pl.seed_everything(self.config.seed, verbose=False)
        model = Classifier(to_dict(self.config), self.datamodule.data.classes)
        if start is None:
            model.load_pretrained()
        return model

    def new_trainer(self, start: Path | None) -> pl.Trainer:
        config = self.config
        # Anew for each attempt, and before what saves within an epoch.
        average = [ours.AverageWeights(config.ema_decay)] if config.ema_decay else []
        savers = make_savers(config, self.checkpoints, self.validated)
        added = [*average, *self.callbacks, *savers, self.stop]
        return make_trainer(config, self.devices, self.run_dir, added, start)

    def last_good(self, error: Exception) -> Path | None:
        """The checkpoint to go back to, with half the learning rate; None: the beginning. Raises
        TrainError when it has been tried often enough."""
        found = self.divergence
        if found.restores >= self.config.max_restores:
            raise TrainError(
                f"{error}; {found.restores} attempts with a lower learning rate did not help: lower"
                " learning_rate or gradient_clip_val",
                EXIT_DIVERGED,
            ) from None
        found.restores, found.rate_scale = found.restores + 1, found.rate_scale / 2
        wait_for_others()
        share_checkpoints(self.checkpoints)
        good = newest_that_loads(self.checkpoints, epochs_only=True)
        place = f"epoch {good[1]['training']['epoch']}" if good else "the beginning"
        say(
            f"diverged: {error}; going on from {place} with {found.rate_scale:g} of the learning"
            " rate"
        )
        return good[0] if good else None

    def test(self, model: Classifier) -> dict[str, Any]:
        """In the first process, the others being gone. Returns the summary."""
        devices = self.devices
        if devices.world > 1:
            torch.set_num_threads(torch.get_num_threads() * devices.count)
            added = [self.tell, self.stop]
            trainer = make_trainer(self.config, devices.first(), self.run_dir, added, None)
        else:
            trainer = model.trainer
        chosen = self.checkpoints / (BEST if self.validated else LAST)
        trainer.test(model, datamodule=self.datamodule, ckpt_path=chosen, verbose=False)
        about = {
            "checkpoint": f"checkpoints/{chosen.name}",
            "wall_seconds": self.tell.whole.now(),
            "restores": self.divergence.restores,
            "parts": self.cut.parts_of(self.datamodule.share, self.datamodule.device),
        }
        return write_summary(self.run_dir, devices, model, self.tell, about)


def take_up(content: Mapping[str, Any], config: TrainConfig, tell: ours.TellProgress) -> None:
    """What the checkpoint of a training that goes on tells of it, and what is done in another way
    from now on."""
    training = content["training"]
    tell.whole.seconds = training.get("wall_seconds", training["seconds"])
    tell.changes = list(training.get("changes", []))
    if changed := changed_values(content["hyper_parameters"]["config"], config):
        tell.changes.append(f"after {training['step']} steps: {changed}")
        say(f"from here on: {changed}")
    if training["epoch"] >= config.max_epochs:
        say(f"all epochs ({config.max_epochs}) are trained already: only the test is done")


def make_savers(config: TrainConfig, checkpoints: Path, validated: bool) -> list[pl.Callback]:
    """What keeps the best epoch and the last one, and stops when none is better any more."""
    last = ModelCheckpoint(
        checkpoints, Path(LAST).stem, save_on_train_epoch_end=True, enable_version_counter=False
    )
    savers: list[pl.Callback] = [LearningRateMonitor(logging_interval="epoch")]
    if validated:
        # Before the last one, which knows of it: a kill between the two must not leave a best epoch
        # that is nowhere.
        savers.append(ours.BestCheckpoint(checkpoints, Path(BEST).stem))
    savers.append(last)
    if config.patience:
        savers.append(EarlyStopping("val_accuracy", config.min_delta, config.patience, mode="max"))
    return savers


def make_trainer(
    config: TrainConfig,
    devices: Devices,
    run_dir: Path,
    callbacks: list[pl.Callback],
    start: Path | None,
) -> pl.Trainer:
    done, strategy = standing(start), "auto"
    if devices.world > 1:
        # Weights that wait while the last layer is trained alone take no part.
        strategy = "ddp_find_unused_parameters_true" if config.head_fraction else "ddp"
    return pl.Trainer(
        accelerator=devices.accelerator,
        devices=list(devices.indices) if devices.indices is not None else devices.count,
        num_nodes=devices.hosts,
        strategy=strategy,
        precision="bf16-mixed" if uses_half(config, torch_device(devices)) else "32-true",
        max_epochs=max(config.max_epochs, done["epoch"]),
        gradient_clip_val=config.gradient_clip_val or None,
        deterministic=config.deterministic,
        benchmark=not config.deterministic,
        callbacks=callbacks,
        logger=make_loggers(config, run_dir, done["step"]),
        plugins=[WholeFiles()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def make_loggers(config: TrainConfig, run_dir: Path, done: int | None) -> list[Any]:
    """TensorBoard, and beside it what `logger` names, whose settings are its own environment
    variables. `done`: steps of a training that goes on. Raises TrainError."""
    board = TensorBoard(run_dir, name="", version="logs", purge_step=done, default_hp_metric=False)
    name = run_dir.name
    try:
        if config.logger == "wandb":  # whose id makes all attempts one run there
            return [board, loggers.WandbLogger(name, run_dir, id=name)]
        if config.logger == "mlflow":
            # Where no server is named, a file that `mlflow ui --backend-store-uri` shows.
            place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir / 'mlflow.db'}"
            return [board, loggers.MLFlowLogger(run_name=name, tracking_uri=place)]
    except ModuleNotFoundError:
        raise no_logger(config.logger) from None
    return [board]


def out_of_memory(error: BaseException) -> BaseException:
    """The error as a TrainError where it is one of memory."""
    if not is_out_of_memory(error):
        return error
    return TrainError(
        f"out of memory: {str(error).splitlines()[0][:200]}; lower batch_size and raise"
        " accumulate_grad_batches",
        EXIT_MEMORY,
    )
