"""One training from its images to its summary, as a Lightning script: data, callbacks, model,
Trainer, fit, test. `python -m trainer.train --help` has the options (`trainer/command.py`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import TrainConfig, to_dict
from trainer.options import EXIT_DIVERGED, EXIT_MEMORY, EXIT_USAGE, TrainError, changed_values
from trainer.processes import is_first_process, leave_others, remember_others, say, wait_for_others

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from trainer.callbacks import FindDivergence, TellProgress
    from trainer.data.images import ImageData
    from trainer.devices import Devices

# torch and Lightning are imported where they are used, so that the command reads and refuses its
# options without waiting for them.


def train(
    config: TrainConfig, data: ImageData, run_dir: Path, start: Path | None = None
) -> dict[str, Any]:
    """Fit, from the checkpoint `start` where there is one, test, and write the summary, which is
    returned (empty in all processes but the first).

    Raises TrainError, and callbacks.Stopped where it was asked to stop.
    """
    import pytorch_lightning as pl
    import torch

    from trainer import callbacks as ours
    from trainer.checkpoints import BEST, LAST, WITHIN, load_checkpoint, remove_unfinished, standing
    from trainer.data.data_module import ImageDataModule
    from trainer.devices import choose_devices, compile_wanted, keep_freed_memory, torch_device
    from trainer.model import Classifier
    from trainer.progress import News
    from trainer.report.summary import describe, write_summary

    first, checkpoints = is_first_process(), run_dir / "checkpoints"
    run_dir.mkdir(parents=True, exist_ok=True)
    if first:
        remove_unfinished(checkpoints)
    devices = choose_devices(config)
    if devices.indices is None:
        keep_freed_memory()
    datamodule = ImageDataModule(data, config, torch_device(devices))
    steps = datamodule.steps_for(devices.world)
    images = min(datamodule.share * devices.world, len(datamodule.train_images))
    describe(config, devices, datamodule)

    judged = datamodule.validation is not None
    within = checkpoints / (LAST if judged else WITHIN)
    stop = ours.StopWhenAsked(within)
    stop.install()
    tell = ours.TellProgress(run_dir if first else None, images)
    if start:
        take_up(load_checkpoint(start), config, tell)
    tell.progress.tell(News("starting", standing(start)["epoch"], config.max_epochs))
    cut = ours.CutBatches(config.part_images, at_least=config.accumulate_grad_batches)
    compile_first = ours.CompileFirst(config.compile == "true", datamodule.example_batches, cut)
    find_divergence = ours.FindDivergence(len(data.classes))
    callbacks: list[pl.Callback] = [
        *([compile_first] if compile_wanted(config, datamodule.device) else []),
        cut,
        ours.ExactResume(config.seed, within, images, steps),
        find_divergence,
        tell,
    ]
    while True:
        pl.seed_everything(config.seed, verbose=False)
        model = Classifier(to_dict(config), data.classes)
        if start is None:
            model.load_pretrained()
        # Anew for each attempt, and before what saves within an epoch.
        average = [ours.AverageWeights(config.ema_decay)] if config.ema_decay else []
        savers = make_savers(config, checkpoints, judged)
        added = [*average, *callbacks, *savers, stop]
        trainer = make_trainer(config, devices, run_dir, added, start)
        try:
            trainer.fit(model, datamodule=datamodule, ckpt_path=start)
            break
        except ours.Diverged as error:
            start = last_good(error, config, find_divergence, checkpoints)
        except (RuntimeError, MemoryError) as error:
            raise out_of_memory(error) from None
        finally:
            remember_others(trainer.strategy.launcher)
    stop.raise_if_asked()
    if trainer.should_stop:
        say(f"stopped early: no better validation accuracy for {config.patience} epochs")

    # The first process tests alone, with all threads, so that each image counts once and in its
    # place.
    leave_others()
    if not first:
        return {}
    if devices.world > 1:
        torch.set_num_threads(torch.get_num_threads() * devices.count)
        trainer = make_trainer(config, devices.first(), run_dir, [tell, stop], None)
    chosen = checkpoints / (BEST if judged else LAST)
    trainer.test(model, datamodule=datamodule, ckpt_path=chosen, verbose=False)
    about = {
        "checkpoint": f"checkpoints/{chosen.name}",
        "wall_seconds": tell.whole.now(),
        "restores": find_divergence.restores,
        "parts": cut.parts_of(datamodule.share, datamodule.device),
    }
    return write_summary(run_dir, devices, model, tell, about)


def take_up(content: Mapping[str, Any], config: TrainConfig, tell: TellProgress) -> None:
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


def make_savers(config: TrainConfig, checkpoints: Path, judged: bool) -> list[pl.Callback]:
    """What keeps the best epoch and the last one, and stops when none is better any more."""
    from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

    from trainer.callbacks import BestCheckpoint
    from trainer.checkpoints import BEST, LAST

    last = ModelCheckpoint(
        checkpoints, Path(LAST).stem, save_on_train_epoch_end=True, enable_version_counter=False
    )
    savers: list[pl.Callback] = [LearningRateMonitor(logging_interval="epoch")]
    if judged:
        # Before the last one, which knows of it: a kill between the two must not leave a best epoch
        # that is nowhere.
        savers.append(BestCheckpoint(checkpoints, Path(BEST).stem))
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
    import pytorch_lightning as pl

    from trainer.checkpoints import WholeFiles, standing
    from trainer.devices import torch_device
    from trainer.evaluate import uses_half

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
    from pytorch_lightning import loggers

    from trainer.loggers import TensorBoard

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


def no_logger(name: str) -> TrainError:
    text = f"logger {name}: the package is not installed: pip install {name}"
    return TrainError(text, EXIT_USAGE)


def last_good(
    error: Exception, config: TrainConfig, found: FindDivergence, checkpoints: Path
) -> Path | None:
    """The checkpoint to go back to, with half the learning rate; None: the beginning. Raises
    TrainError when it has been tried often enough."""
    from trainer.checkpoints import newest_that_loads, share_checkpoints

    if found.restores >= config.max_restores:
        raise TrainError(
            f"{error}; {found.restores} attempts with a lower learning rate did not help: lower"
            " learning_rate or gradient_clip_val",
            EXIT_DIVERGED,
        ) from None
    found.restores, found.rate_scale = found.restores + 1, found.rate_scale / 2
    wait_for_others()
    share_checkpoints(checkpoints)
    good = newest_that_loads(checkpoints, judged=True)
    place = f"epoch {good[1]['training']['epoch']}" if good else "the beginning"
    say(f"diverged: {error}; going on from {place} with {found.rate_scale:g} of the learning rate")
    return good[0] if good else None


def out_of_memory(error: BaseException) -> BaseException:
    """The error as a TrainError where it is one of memory."""
    from trainer.callbacks.parts import is_out_of_memory

    if not is_out_of_memory(error):
        return error
    return TrainError(
        f"out of memory: {str(error).splitlines()[0][:200]}; lower batch_size and raise"
        " accumulate_grad_batches",
        EXIT_MEMORY,
    )


if __name__ == "__main__":
    from trainer.command import command

    command()
