"""`python -m trainer.train`: parse → fit → test → summary."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import FIELDS, ConfigError, TrainConfig, effective_batch, from_dict, load_config, peak_learning_rate, to_dict, to_yaml

if TYPE_CHECKING:
    import torch

    from trainer.keeper import Keeper
    from trainer.model import Classifier
    from trainer.sources import ImageData

EXIT_USAGE, EXIT_DATA, EXIT_DEVICE, EXIT_DIVERGED, EXIT_MEMORY, EXIT_STOPPED = 2, 3, 4, 5, 6, 143


class TrainError(Exception):
    """Ends the training with one line and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# -- the command line


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.train",
        description="Train a network on CIFAR-10 or a folder of images. Every field of the recipe is an option of its own.",
        epilog="exit codes: 0 finished, 2 wrong options, 3 no usable images, 4 no such device, 5 diverged, 6 out of memory, 143 stopped",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", help="standard, fast, demo or another of trainer/recipes, or the path of a .yaml file")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the recipe to change")
    parser.add_argument("--resume", metavar="PATH|auto", help="go on from a checkpoint; auto: the newest of --run_dir that loads")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="train N seeds; mean and standard deviation in the summary")
    parser.add_argument("--print_config", action="store_true", help="print the effective values as YAML, and train nothing")
    for name in FIELDS:
        if name != "recipe":
            parser.add_argument(f"--{name}", default=None, metavar="VALUE", help=argparse.SUPPRESS)
    return parser


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, TrainConfig, dict[str, Any] | None]:
    """Options, configuration, and the checkpoint to go on from. A resumed training keeps its configuration; options change it."""
    options = make_parser().parse_args(arguments)
    given = {name: getattr(options, name) for name in FIELDS if name != "recipe"}
    overrides: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    errors = []
    for item in options.set:
        name, sign, value = item.partition("=")
        if not sign:
            errors.append(f"--set needs field=value, not {item!r:.60}")
        overrides[name] = value
    if options.repeat < 1:
        errors.append("--repeat must be at least 1")
    if options.repeat > 1 and options.resume:
        errors.append("--repeat goes on by itself: give the same --run_dir, without --resume")
    checkpoint = None
    if options.resume and not errors:
        checkpoint, run_dir = find_checkpoint(options.resume, str(overrides.get("run_dir") or ""))
        base = to_dict(from_dict(checkpoint["hyper_parameters"]["config"]))
        if options.recipe and options.recipe != base["recipe"]:
            errors.append(f"the checkpoint was made with the recipe {base['recipe']}, not {options.recipe}")
        overrides = {**base, "run_dir": str(run_dir), **overrides}
        options.recipe = "standard"  # every field is given, so it stands for none
    try:
        config = load_config(options.recipe or "standard", overrides)
    except ConfigError as error:
        raise ConfigError(errors + error.errors) from None
    if errors:
        raise ConfigError(errors)
    if checkpoint is not None:
        config = dataclasses.replace(config, recipe=str(base["recipe"]))
    return options, config, checkpoint


def find_checkpoint(resume: str, run_dir: str) -> tuple[dict[str, Any], Path]:
    """The checkpoint and its run's directory. Raises TrainError where there is none: a training must not restart in silence."""
    from trainer.checkpoints import load_checkpoint, newest_that_loads

    if resume != "auto":
        path = Path(resume)
        try:
            return load_checkpoint(path), Path(run_dir) if run_dir else path.resolve().parent.parent
        except ValueError as error:
            raise TrainError(f"--resume: {error}", EXIT_USAGE) from None
    if not run_dir:
        raise TrainError("--resume auto needs --run_dir, the run to go on with", EXIT_USAGE)
    found = newest_that_loads(Path(run_dir) / "checkpoints")
    if found is None:
        raise TrainError(f"no checkpoint in {Path(run_dir) / 'checkpoints'} loads; without --resume a new training begins", EXIT_USAGE)
    path, content, wrong = found
    for text in wrong:
        print(f"passed over: {text}")
    print(f"resuming from {path}")
    return content, Path(run_dir)


# -- devices


@dataclasses.dataclass(frozen=True)
class Devices:
    """`indices`: of the GPUs as torch counts them; None on a CPU, where `count` is the number of processes."""

    accelerator: str
    count: int
    indices: tuple[int, ...] | None = None


def choose_devices(config: TrainConfig) -> Devices:
    """Raises TrainError where the GPU asked for is missing: nothing falls back to a CPU in silence."""
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.accelerator == "cpu" or (config.accelerator == "auto" and not available):
        return Devices("cpu", _limited(cpu_processes(config.devices), config.max_devices))
    if not available:
        raise TrainError(
            "torch sees no GPU (driver, or a build of torch for CPUs?); to train on the CPU all the same: --accelerator cpu", EXIT_DEVICE
        )
    wanted = tuple(range(available)) if config.devices == "auto" else tuple(int(part) for part in config.devices.split(","))
    missing = [index for index in wanted if index >= available]
    if missing or len(set(wanted)) < len(wanted):
        raise TrainError(f"--devices {config.devices}: torch sees GPUs 0 to {available - 1}, each may be named once", EXIT_DEVICE)
    wanted = wanted[: _limited(len(wanted), config.max_devices)]
    return Devices("gpu", len(wanted), wanted)


def cpu_processes(devices: str) -> int:
    """`auto` is one; `2` and `0,1` are two."""
    if devices == "auto":
        return 1
    parts = devices.split(",")
    return len(parts) if len(parts) > 1 else max(1, int(parts[0]))


def _limited(count: int, limit: int) -> int:
    return min(count, limit) if limit else count


def describe_devices(devices: Devices) -> list[str]:
    import torch

    if devices.indices is None:
        return [f"CPU, {devices.count} process(es), {torch.get_num_threads()} threads each"]
    lines = [f"{devices.count} GPU(s)"]
    for index in devices.indices:
        about = torch.cuda.get_device_properties(index)
        lines.append(f"  gpu {index}: {about.name}, {about.total_memory / 2**30:.1f} GiB")
    return lines


def torch_device(devices: Devices) -> torch.device:
    import torch

    return torch.device("cpu" if devices.indices is None else f"cuda:{devices.indices[0]}")


# -- one training


def train(config: TrainConfig, data: ImageData, run_dir: Path, checkpoint: dict[str, Any] | None = None) -> dict[str, Any]:
    """Fit, test, and write the summary, which is returned. Raises TrainError, and keeper.Stopped where it was asked to stop."""
    import pytorch_lightning as pl

    from trainer.data_module import ImageDataModule, worker_count
    from trainer.keeper import Keeper

    devices = choose_devices(config)
    first = is_first_process()
    if first:
        run_dir.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(config.seed, verbose=False)
    module = ImageDataModule(data, config)
    keeper = Keeper(run_dir if first else None)
    if first:
        describe(config, devices, module, worker_count(config))
        keeper.progress.tell("starting", epoch=0, max_epochs=config.max_epochs, metrics={})
    started = time.monotonic()
    model = fit(config, devices, module, keeper, checkpoint, run_dir)
    if not first:
        return {}
    keeper.progress.tell("testing", epoch=config.max_epochs, max_epochs=config.max_epochs, metrics={})
    return finish(config, devices, module, model, run_dir, started)


def describe(config: TrainConfig, devices: Devices, module: Any, workers: int) -> None:
    from trainer.networks import make_network
    from trainer.optimizers import parameter_count

    module.device = torch_device(devices)
    for line in describe_devices(devices):
        print(line)
    data, held = module.data, module.validation
    print(
        f"data: {data.kind} at {data.path}, {len(module.train_images)} images to train on, {len(held) if held else 0} to validate, "
        f"{len(data.test)} to test, {len(data.classes)} classes"
    )
    if data.kind == "synthetic":
        print("these images are synthetic: the accuracy says nothing about real ones")
    if held is None:
        print("no validation split: this recipe trains on all training images, and its last epoch counts")
    if module.loader_kind == "workers":
        capped = f" (num_workers {config.num_workers}, capped at the cores)" if workers < config.num_workers else ""
        print(f"loading in {workers} worker processes{capped}")
    else:
        print("loading from a copy of the images on the device")
    count = parameter_count(make_network(config, len(data.classes)).parameters())
    print(
        f"recipe {config.recipe}: network {config.network}, {count / 1e6:.2f} million parameters, effective batch "
        f"{effective_batch(config, devices.count)}, peak learning rate {peak_learning_rate(config, devices.count):g}",
        flush=True,
    )


def fit(
    config: TrainConfig, devices: Devices, module: Any, keeper: Keeper, checkpoint: dict[str, Any] | None, run_dir: Path
) -> Classifier:
    """Train to the end. After a divergence it goes back to the last good state with half the learning rate, max_restores times."""
    from trainer.checkpoints import newest_that_loads
    from trainer.keeper import Diverged
    from trainer.model import Classifier, is_out_of_memory

    restores, scale = 0, 1.0
    while True:
        model = Classifier(to_dict(config), module.data.classes)
        if checkpoint is not None:
            model.restore(checkpoint)
            restores, scale = max(restores, model.state.restores), min(scale, model.state.rate_scale)
        model.state.restores, model.state.rate_scale = restores, scale
        try:
            run_trainer(config, devices, module, keeper, model)
            return model
        except Diverged as error:
            if restores >= config.max_restores:
                raise TrainError(
                    f"{error}; {restores} attempts with a lower learning rate did not help: lower learning_rate or gradient_clip_val",
                    EXIT_DIVERGED,
                ) from None
            restores, scale = restores + 1, scale / 2
            found = newest_that_loads(run_dir / "checkpoints")
            checkpoint = found[1] if found else None
            place = f"epoch {checkpoint['training']['epoch']}" if checkpoint else "the beginning"
            model.print(f"diverged: {error}; going on from {place} with {scale:g} of the learning rate", flush=True)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainError(
                f"out of memory: {str(error).splitlines()[0][:200]}; lower batch_size and raise accumulate_grad_batches", EXIT_MEMORY
            ) from None


def run_trainer(config: TrainConfig, devices: Devices, module: Any, keeper: Keeper, model: Classifier) -> None:
    import pytorch_lightning as pl

    from trainer.evaluate import uses_half

    steps = max(1, len(module.train_images) // (module.share * devices.count))
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
    trainer.fit(model, datamodule=module)


def finish(
    config: TrainConfig, devices: Devices, module: Any, model: Classifier, run_dir: Path, started: float
) -> dict[str, Any]:
    """Test the best checkpoint once, and write weights.pt, the report and, last of all, summary.json."""
    from trainer.checkpoints import save_whole
    from trainer.evaluate import evaluate, load_network, uses_half
    from trainer.keeper import best_accuracy
    from trainer.progress import write_json
    from trainer.report import write_report

    history = model.state.history
    best = newest(run_dir / "checkpoints", "best-*.ckpt") if module.validation is not None else None
    chosen = best or run_dir / "checkpoints" / "last.ckpt"
    device = torch_device(devices)
    network = load_network(chosen).network.to(device)
    tested = time.monotonic()
    evaluation = evaluate(network, module.data.test, config.tta, device.type == "cuda" and uses_half(config, device))
    test_s = time.monotonic() - tested
    state = {f"network.{name}": value.cpu() for name, value in network.state_dict().items()}
    save_whole({"state_dict": state, "hyper_parameters": dict(model.hparams)}, run_dir / "weights.pt")
    top = best_accuracy(history)
    summary = {
        "test_accuracy": evaluation.accuracy,
        "test_loss": evaluation.loss,
        "test_images": evaluation.count,
        "per_class": dict(zip(module.data.classes, evaluation.per_class(), strict=True)),
        "confusion": evaluation.confusion.tolist(),
        "val_accuracy": top,
        "epochs": len(history),
        "max_epochs": config.max_epochs,
        "best_epoch": next((row["epoch"] for row in history if top is not None and row["val_accuracy"] == top), None),
        "checkpoint": f"checkpoints/{chosen.name}",
        "seconds": model.state.seconds + test_s,
        "wall_seconds": time.monotonic() - started,
        "images_per_s": history[-1]["images_per_s"] if history else None,
        "restores": model.state.restores,
        "parts": model.state.parts or config.accumulate_grad_batches,
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
        },
        "devices": describe_devices(devices),
        "versions": versions(),
        "config": to_dict(config),
    }
    write_report(run_dir, summary, history)
    write_json(run_dir / "summary.json", summary)
    return summary


def newest(directory: Path, pattern: str) -> Path | None:
    return max(directory.glob(pattern), key=lambda path: path.stat().st_mtime, default=None)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "pytorch_lightning": version("pytorch-lightning"),
        "cuda": str(torch.version.cuda),
        "system": platform.platform(),
    }


def is_first_process() -> bool:
    """Lightning starts the others with LOCAL_RANK set."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0


# -- main


def quiet() -> None:
    """What Lightning and torch remark on by default would bury what matters."""
    import pytorch_lightning  # noqa: F401  it sets its loggers' levels when it is imported

    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch.utils.data")


def run_once(config: TrainConfig, data: ImageData, run_dir: Path, checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    from trainer.progress import point_logs

    if is_first_process() and run_dir.parent.exists():
        (run_dir / "logs").mkdir(parents=True, exist_ok=True)
        point_logs(run_dir, Path("logs"))
    summary = train(config, data, run_dir, checkpoint)
    if summary:
        print(f"test_accuracy {summary['test_accuracy']:.4f} ({summary['test_images']} images, {summary['checkpoint']})")
        times = f"{summary['seconds']:.1f} s of training, {summary['wall_seconds']:.1f} s in all"
        print(f"{summary['epochs']} epochs in {times}; {run_dir}", flush=True)
    return summary


def run_repeated(config: TrainConfig, data: ImageData, run_dir: Path, count: int) -> None:
    """`count` seeds, each in a directory of its own; those that have a summary already are not trained again."""
    import json
    import statistics

    from trainer.checkpoints import newest_that_loads
    from trainer.progress import write_json

    summaries = []
    for seed in range(config.seed, config.seed + count):
        place = run_dir / f"seed-{seed}"
        if (place / "summary.json").exists():
            summaries.append(json.loads((place / "summary.json").read_text()))
            print(f"seed {seed}: done already, test_accuracy {summaries[-1]['test_accuracy']:.4f}")
            continue
        print(f"seed {seed}:", flush=True)
        found = newest_that_loads(place / "checkpoints") if (place / "checkpoints").is_dir() else None
        summaries.append(run_once(dataclasses.replace(config, seed=seed), data, place, found[1] if found else None))
    if not all(summaries):
        return
    accuracies = [summary["test_accuracy"] for summary in summaries]
    deviation = statistics.stdev(accuracies) if count > 1 else None
    write_json(
        run_dir / "summary.json",
        summaries[-1]
        | {"test_accuracy": statistics.mean(accuracies), "test_accuracy_std": deviation, "test_accuracies": accuracies,
           "seconds": statistics.mean(summary["seconds"] for summary in summaries), "seeds": [s["seed"] for s in summaries]},
    )  # fmt: skip
    print(f"test_accuracy {statistics.mean(accuracies):.4f} ± {deviation:.4f} (mean and standard deviation of {count} seeds)")


def main(arguments: Sequence[str] | None = None) -> int:
    # Before torch is imported: GPU indices are then nvidia-smi's, and deterministic products have their workspace.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        options, config, checkpoint = parse(arguments)
        if options.print_config:
            print(to_yaml(config), end="")
            return 0
        quiet()
        from trainer.keeper import Stopped
        from trainer.sources import DataError, load_images

        # Lightning's other processes find the directory that the first one chose.
        name = os.environ.setdefault("TRAINER_RUN_DIR", config.run_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}")
        run_dir = Path(config.run_dir or name)
        choose_devices(config)
        try:
            data = load_images(config.data, lambda text: print(text, flush=True))
            check_same_data(checkpoint, data, config)
            if options.repeat > 1:
                run_repeated(config, data, run_dir, options.repeat)
            else:
                run_once(config, data, run_dir, checkpoint)
        except DataError as error:
            raise TrainError(str(error), EXIT_DATA) from None
        except Stopped:
            raise TrainError(
                f"stopped; the state is saved. To go on: python -m trainer.train --resume auto --run_dir {run_dir}", EXIT_STOPPED
            ) from None
    except ConfigError as error:
        for text in error.errors:
            print(f"error: {text}", file=sys.stderr)
        return EXIT_USAGE
    except TrainError as error:
        print(f"{'' if error.code == EXIT_STOPPED else 'error: '}{error}", file=sys.stderr, flush=True)
        return error.code
    finally:
        os.environ.pop("TRAINER_RUN_DIR", None)
    return 0


def check_same_data(checkpoint: dict[str, Any] | None, data: ImageData, config: TrainConfig) -> None:
    from trainer.sources import DataError

    if checkpoint is not None and tuple(checkpoint["hyper_parameters"]["classes"]) != data.classes:
        raise DataError(f"the checkpoint was trained on other classes than those at {config.data}")


if __name__ == "__main__":
    sys.exit(main())
