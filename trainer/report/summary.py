"""What is said of a training before it begins, and what is written when it is done."""

from __future__ import annotations

import dataclasses
import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer.callbacks import TellProgress
from trainer.checkpoints import save_whole
from trainer.config import TrainConfig, effective_batch, peak_learning_rate, to_dict
from trainer.data.data_module import ImageDataModule, worker_count
from trainer.devices import Devices, describe_devices, limit_note
from trainer.evaluate import as_json
from trainer.model import Classifier
from trainer.networks import make_network
from trainer.optimizers import parameter_count
from trainer.processes import is_first_process, say
from trainer.progress import best_row, write_json
from trainer.report.mistakes import find_mistakes
from trainer.report.page import write_report


def describe(config: TrainConfig, devices: Devices, module: ImageDataModule) -> None:
    """What is about to be trained, on what; the first process says it."""
    if not is_first_process():
        return
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
        workers = worker_count(config)
        capped = (
            f" (num_workers {config.num_workers}, capped at the cores)"
            if workers < config.num_workers
            else ""
        )
        print(f"loading in {workers} worker processes{capped}")
    else:
        print("loading from a copy of the images on the device")
    step = effective_batch(config, devices.world)
    if step > len(module.train_images):
        print(
            f"warning: a step takes {step} images, and there are {len(module.train_images)} to"
            " train on: every epoch is one step of all, with a learning rate for"
            f" {step}; lower batch_size"
        )
    count = parameter_count(make_network(config, len(data.classes)).parameters())
    weights = f"{count / 1e6:.2f} million" if count >= 1e5 else f"{count}"
    print(
        f"recipe {config.recipe}: network {config.network}, {weights} parameters,"
        f" effective batch {step}, peak learning rate"
        f" {peak_learning_rate(config, devices.world):g}",
        flush=True,
    )


def write_summary(
    run_dir: Path, devices: Devices, model: Classifier, tell: TellProgress, about: dict[str, Any]
) -> dict[str, Any]:
    """weights.pt, the report and, last of all, summary.json, of a model that was tested. `about`:
    what else belongs into the summary."""
    config, history = model.config, tell.history
    module: ImageDataModule = model.trainer.datamodule  # type: ignore[attr-defined]  # it has one
    evaluation = model.evaluation
    assert evaluation is not None
    write_weights(model, run_dir / "weights.pt")
    rates = [row["images_per_s"] for row in history]
    top = best_row(history) or {"epoch": None, "val_accuracy": None}
    summary = {
        **as_json(evaluation, module.data.classes),
        "val_accuracy": top["val_accuracy"],
        "epochs": len(history),
        "max_epochs": config.max_epochs,
        "best_epoch": top["epoch"],
        "seconds": tell.clock.seconds,
        "images_per_s": statistics.median(rates) if rates else None,
        **about,
        "effective_batch": effective_batch(config, devices.world),
        "learning_rate": peak_learning_rate(config, devices.world),
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
        "changes": tell.changes,
    }
    answers = evaluation.answers
    try:
        mistakes = find_mistakes(model.network, module.data.test, answers) if answers else None
        write_report(run_dir, summary, history, mistakes)
    except Exception as error:  # a GPU's memory, a network of somebody's own, a font: of many kinds
        # What took a night is not lost for want of a picture of it.
        say(f"there is no report: {' '.join(str(error).split())[:200] or type(error).__name__}")
    write_json(run_dir / "summary.json", summary)
    return summary


def write_weights(model: Classifier, path: Path) -> None:
    """The network alone, to be given away: without the paths of the machine that trained it."""
    state = {
        name: value.cpu()
        for name, value in model.state_dict().items()
        if name.startswith("network.")
    }
    config = dataclasses.replace(model.config, data="", run_dir="")
    about = {"config": to_dict(config), "classes": list(model.classes)}
    save_whole({"state_dict": state, "hyper_parameters": about}, path)


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "pytorch_lightning": version("pytorch-lightning"),
        "cuda": str(torch.version.cuda),
        "system": platform.platform(),
    }
