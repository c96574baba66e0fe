"""One training: fit, test, summary."""

from __future__ import annotations

import dataclasses
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from trainer.checkpoints import BEST, LAST, newest_that_loads, save_whole
from trainer.config import TrainConfig, effective_batch, peak_learning_rate, to_dict
from trainer.data.data_module import ImageDataModule, worker_count
from trainer.data.images import ImageData
from trainer.devices import Devices, choose_devices, describe_devices, limit_note, torch_device
from trainer.evaluate import as_json, evaluate, load_network, uses_half
from trainer.keeper import Diverged, Keeper, best_row
from trainer.mistakes import find_mistakes
from trainer.model import Classifier, first_parts, is_out_of_memory
from trainer.networks import make_network
from trainer.optimizers import parameter_count
from trainer.options import EXIT_DIVERGED, EXIT_MEMORY, TrainError
from trainer.processes import is_first_process, remember_others, say, wait_for_others
from trainer.progress import write_json
from trainer.report import write_report


def train(
    config: TrainConfig, data: ImageData, run_dir: Path, checkpoint: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Fit, test, and write the summary, which is returned. Raises TrainError, and keeper.Stopped
    where it was asked to stop."""
    devices = choose_devices(config)
    first = is_first_process()
    if first:
        run_dir.mkdir(parents=True, exist_ok=True)
    module = ImageDataModule(data, config)
    keeper = Keeper(run_dir if first else None)
    keeper.install()
    if first:
        epoch = checkpoint["training"]["epoch"] if checkpoint else 0
        keeper.progress.tell("starting", epoch=epoch, max_epochs=config.max_epochs)
        describe(config, devices, module, worker_count(config))
    started = time.monotonic()
    model = fit(config, devices, module, keeper, checkpoint, run_dir)
    if not first:
        return {}
    return finish(config, devices, module, keeper, model, run_dir, started)


def describe(config: TrainConfig, devices: Devices, module: ImageDataModule, workers: int) -> None:
    module.device = torch_device(devices)
    if config.accelerator == "auto" and devices.indices is None:
        print("torch sees no GPU: training on the CPU")
    for line in [*describe_devices(devices), *filter(None, [limit_note(config, devices)])]:
        print(line)
    data, held = module.data, module.validation
    print(
        f"data: {data.kind} at {data.path}, {len(module.train_images)} images to train on,"
        f" {len(held) if held else 0} to validate, {len(data.test)} to test, {len(data.classes)}"
        f" classes, {data.image_size}×{data.image_size} pixels"
    )
    if data.kind == "synthetic":
        print("these images are synthetic: the accuracy says nothing about real ones")
    if held is None:
        print(
            "no validation split: this recipe trains on all training images, and its last epoch"
            " counts"
        )
    if module.loader_kind == "workers":
        capped = (
            f" (num_workers {config.num_workers}, capped at the cores)"
            if workers < config.num_workers
            else ""
        )
        print(f"loading in {workers} worker processes{capped}")
    else:
        print("loading from a copy of the images on the device")
    count = parameter_count(make_network(config, len(data.classes)).parameters())
    print(
        f"recipe {config.recipe}: network {config.network}, {count / 1e6:.2f} million parameters,"
        f" effective batch {effective_batch(config, devices.count)}, peak learning rate"
        f" {peak_learning_rate(config, devices.count):g}",
        flush=True,
    )


def fit(
    config: TrainConfig,
    devices: Devices,
    module: ImageDataModule,
    keeper: Keeper,
    checkpoint: dict[str, Any] | None,
    run_dir: Path,
) -> Classifier:
    """Train to the end. After a divergence it goes back to the last good state with half the
    learning rate, max_restores times."""
    restores, scale, seconds = 0, 1.0, 0.0
    while True:
        pl.seed_everything(config.seed, verbose=False)
        model = Classifier(to_dict(config), module.data.classes)
        if checkpoint is not None:
            model.restore(checkpoint)
            restores, scale = (
                max(restores, model.state.restores),
                min(scale, model.state.rate_scale),
            )
        model.state.restores, model.state.rate_scale = restores, scale
        # What was lost took its time as well.
        model.state.seconds = max(seconds, model.state.seconds)
        try:
            run_trainer(config, devices, module, keeper, model)
            return model
        except Diverged as error:
            if restores >= config.max_restores:
                raise TrainError(
                    f"{error}; {restores} attempts with a lower learning rate did not help: lower"
                    " learning_rate or gradient_clip_val",
                    EXIT_DIVERGED,
                ) from None
            keeper.account(model.state)
            restores, scale, seconds = restores + 1, scale / 2, model.state.seconds
            wait_for_others()
            found = newest_that_loads(run_dir / "checkpoints", judged=True)
            checkpoint = found[1] if found else None
            place = f"epoch {checkpoint['training']['epoch']}" if checkpoint else "the beginning"
            say(f"diverged: {error}; going on from {place} with {scale:g} of the learning rate")
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainError(
                f"out of memory: {str(error).splitlines()[0][:200]}; lower batch_size and raise"
                " accumulate_grad_batches",
                EXIT_MEMORY,
            ) from None


def run_trainer(
    config: TrainConfig,
    devices: Devices,
    module: ImageDataModule,
    keeper: Keeper,
    model: Classifier,
) -> None:
    steps = module.steps_for(devices.count)
    model.state.fit_to(module.share * devices.count, steps)
    pending = model.state.batch >= steps
    half = uses_half(config, torch_device(devices))
    trainer = pl.Trainer(
        accelerator=devices.accelerator,
        devices=list(devices.indices) if devices.indices is not None else devices.count,
        strategy="ddp" if devices.count > 1 else "auto",
        precision="bf16-mixed" if half else "32-true",
        max_epochs=max(0, config.max_epochs - model.state.epoch - pending),
        deterministic=config.deterministic,
        benchmark=not config.deterministic,
        callbacks=[keeper],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )
    try:
        trainer.fit(model, datamodule=module)
    finally:
        remember_others(trainer.strategy.launcher)


def finish(
    config: TrainConfig,
    devices: Devices,
    module: ImageDataModule,
    keeper: Keeper,
    model: Classifier,
    run_dir: Path,
    started: float,
) -> dict[str, Any]:
    """Test the best checkpoint once, and write weights.pt, the report and, last of all,
    summary.json."""
    history = model.state.history
    chosen = run_dir / "checkpoints" / (BEST if module.validation is not None else LAST)
    device = torch_device(devices)
    network = load_network(chosen).network.to(device)
    tested = time.monotonic()

    def before_batch() -> None:
        keeper.raise_if_asked()
        keeper.tell_testing(model)

    evaluation = evaluate(
        network,
        module.data.test,
        config.tta,
        device.type == "cuda" and uses_half(config, device),
        before_batch,
        workers=worker_count(config),
    )
    test_s = time.monotonic() - tested
    state = {f"network.{name}": value.cpu() for name, value in network.state_dict().items()}
    # To be given away: without the paths of the machine that it was trained on.
    about = {
        "config": to_dict(dataclasses.replace(config, data="", run_dir="")),
        "classes": list(model.classes),
    }
    save_whole({"state_dict": state, "hyper_parameters": about}, run_dir / "weights.pt")
    top = best_row(history) or {"epoch": None, "val_accuracy": None}
    summary = {
        **as_json(evaluation, module.data.classes),
        "val_accuracy": top["val_accuracy"],
        "epochs": len(history),
        "max_epochs": config.max_epochs,
        "best_epoch": top["epoch"],
        "checkpoint": f"checkpoints/{chosen.name}",
        "seconds": model.state.seconds + test_s,
        "wall_seconds": time.monotonic() - started,
        "images_per_s": history[-1]["images_per_s"] if history else None,
        "restores": model.state.restores,
        "parts": model.state.parts or first_parts(config, module.share, device),
        "effective_batch": effective_batch(config, devices.count),
        "learning_rate": peak_learning_rate(config, devices.count),
        "seed": config.seed,
        "data": {
            "kind": module.data.kind,
            "sha256": module.data.sha256,
            "train": len(module.train_images),
            "validation": len(module.validation) if module.validation else 0,
            "test": len(module.data.test),
            "classes": list(module.data.classes),
            "image_size": module.data.image_size,
            "damaged": list(module.data.damaged),
        },
        "devices": describe_devices(devices),
        "versions": versions(),
        "config": to_dict(config),
    }
    answers = evaluation.answers
    mistakes = find_mistakes(network, module.data.test, answers) if answers else None
    write_report(run_dir, summary, history, mistakes)
    write_json(run_dir / "summary.json", summary)
    return summary


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "pytorch_lightning": version("pytorch-lightning"),
        "cuda": str(torch.version.cuda),
        "system": platform.platform(),
    }
