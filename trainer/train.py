"""The command `python -m trainer.train`: options in, one or several trainings, an exit code out;
`--help` has the options. What a training does: trainer/training.py."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib.util
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trainer.config import ConfigError, TrainConfig, to_dict, to_yaml
from trainer.options import (
    ELSEWHERE,
    EXIT_DATA,
    EXIT_DISK,
    EXIT_DIVERGED,
    EXIT_STOPPED,
    EXIT_USAGE,
    Start,
    TrainError,
    find_start,
    no_logger,
    parse,
)
from trainer.processes import end_others, end_with_parent, is_first_process, say

if TYPE_CHECKING:
    from trainer.data.images import ImageData

OF_ONE = ("seed", "best_epoch", "checkpoint")
"""Of a summary, what stands for one seed alone."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def quiet() -> None:
    """What Lightning and torch remark on by default would bury what matters."""
    import pytorch_lightning  # noqa: F401  it sets its loggers' levels when it is imported

    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore", module="pytorch_lightning|lightning_fabric|torch.utils.data|torchmetrics"
    )


def run_once(
    config: TrainConfig, data: ImageData, run_dir: Path, start: Path | None
) -> dict[str, Any]:
    from trainer.progress import point_logs
    from trainer.training import train

    if is_first_process():
        (run_dir / "logs").mkdir(parents=True, exist_ok=True)
        # The run's own copy of the code needs no way to it.
        if run_dir.resolve() not in Path.cwd().parents:
            point_logs(run_dir, Path("logs"))
    summary = train(config, data, run_dir, start)
    if summary:
        macro = summary["macro"]
        beside = (
            f"; uneven classes: recall {macro['recall']:.4f} and F1 {macro['f1']:.4f} in the mean"
            " over them"
            if summary["uneven"]
            else ""
        )
        print(
            f"test_accuracy {summary['test_accuracy']:.4f} ({summary['test_images']} images,"
            f" {summary['checkpoint']}){beside}"
        )
        times = f"{summary['seconds']:.1f} s of training, {summary['wall_seconds']:.1f} s in all"
        epochs = f"{summary['epochs']} epoch{'s' * (summary['epochs'] != 1)}"
        print(f"{epochs} in {times}; {run_dir}", flush=True)
    return summary


def check_new(run_dir: Path) -> None:
    """Raises TrainError where a training would be overwritten."""
    if is_first_process() and (
        any((run_dir / "checkpoints").glob("*.ckpt")) or (run_dir / "summary.json").exists()
    ):
        raise TrainError(
            f"{run_dir} holds a training already; go on with it: --resume auto, or name another"
            " --run_dir",
            EXIT_USAGE,
        )


def check_packages(config: TrainConfig) -> None:
    """A network or a logger that can't be had, before the images are decoded. Raises TrainError."""
    from trainer.networks.elsewhere import find_maker

    if ":" in config.network:
        find_maker(config.network)
    if config.logger != "tensorboard" and importlib.util.find_spec(config.logger) is None:
        raise no_logger(config.logger)


def run_resumed(config: TrainConfig, data: ImageData, run_dir: Path, start: Start) -> None:
    """In another directory than before it needs the best checkpoint, too: no later epoch may be as
    good."""
    from trainer.checkpoints import BEST, LAST
    from trainer.progress import write_whole

    if tuple(start.content["hyper_parameters"]["classes"]) != data.classes:
        raise TrainError(
            f"the checkpoint was trained on other classes than those at {config.data}: name its"
            " images with --data",
            EXIT_DATA,
        )
    place = run_dir / "checkpoints"
    if is_first_process() and start.path.resolve().parent != place.resolve():
        best = start.path.resolve().parent / BEST
        if best.exists():
            write_whole(place / BEST, best.read_bytes())
        write_whole(place / LAST, start.path.read_bytes())
    run_once(config, data, run_dir, start.path)


def run_repeated(config: TrainConfig, data: ImageData, run_dir: Path, count: int) -> None:
    """`count` seeds, each in a directory of its own; those that have a summary already are not
    trained again."""
    summaries = []
    for seed in range(config.seed, config.seed + count):
        place, own = run_dir / f"seed-{seed}", dataclasses.replace(config, seed=seed)
        if (place / "summary.json").exists():
            summaries.append(json.loads((place / "summary.json").read_text()))
            check_same_values(summaries[-1]["config"], own, place)
            say(f"seed {seed}: done already, test_accuracy {summaries[-1]['test_accuracy']:.4f}")
            continue
        say(f"seed {seed}:")
        start = (
            find_start("auto", str(place)) if any((place / "checkpoints").glob("*.ckpt")) else None
        )
        if start:
            check_same_values(start.content["hyper_parameters"]["config"], own, place)
        summaries.append(run_once(own, data, place, start.path if start else None))
    if is_first_process():
        summarise(summaries, run_dir)


def check_same_values(before: Mapping[str, Any], config: TrainConfig, place: Path) -> None:
    """Seeds are averaged only where nothing else differs. Raises TrainError that names what
    does."""
    names = [
        name
        for name, value in to_dict(config).items()
        if name not in ELSEWHERE and before.get(name, value) != value
    ]
    if names:
        raise TrainError(
            f"{place} was trained with another {', '.join(names)}: give the same values, or another"
            " --run_dir",
            EXIT_USAGE,
        )


def summarise(summaries: Sequence[Mapping[str, Any]], run_dir: Path) -> None:
    """Of several seeds, in place of a single run's summary: the mean of each figure, and the
    accuracy's standard deviation. What stands for one alone is left out."""
    from trainer.progress import write_json

    accuracies = [summary["test_accuracy"] for summary in summaries]
    mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
    own = {
        "test_accuracy": mean,
        "test_accuracy_std": deviation,
        "test_accuracies": accuracies,
        "seeds": [summary["seed"] for summary in summaries],
        "about": "means over the seeds; seed-N/summary.json has each one's own figures",
        "config": summaries[0]["config"],
    }
    shared = {name: value for name, value in mean_of(summaries).items() if name not in OF_ONE}
    write_json(run_dir / "summary.json", shared | own)
    say(
        f"test_accuracy {mean:.4f} ± {deviation:.4f} (mean and standard deviation of"
        f" {len(summaries)} seeds)"
    )


def mean_of(values: Sequence[Any]) -> Any:
    """Of figures, and of those within mappings; what is the same in all stays, None is what has no
    mean."""
    first = values[0]
    if all(value == first for value in values):
        return first
    if all(isinstance(value, Mapping) for value in values):
        return {name: mean_of([value.get(name) for value in values]) for name in first}
    if all(isinstance(value, (int, float)) for value in values):
        return statistics.mean(values)
    return None


def run(options: argparse.Namespace, config: TrainConfig, start: Start | None) -> None:
    """Raises TrainError for all that may be expected to go wrong."""
    from trainer.callbacks import Stopped
    from trainer.data.archive import DataError
    from trainer.data.sources import load_images
    from trainer.devices import choose_devices

    run_dir, repeated = directory_of(config), options.repeat > 1
    choose_devices(config)
    check_packages(config)
    if not start and not repeated:
        check_new(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = f"{run_dir} can't be made ({error.strerror}): name another --run_dir"
        raise TrainError(text, EXIT_USAGE) from None
    try:
        data = load_images(
            config.data, say, image_size=config.image_size, skip_damaged=config.skip_damaged
        )
        config = dataclasses.replace(config, image_size=data.image_size)
        if repeated:
            run_repeated(config, data, run_dir, options.repeat)
        elif start:
            run_resumed(config, data, run_dir, start)
        else:
            run_once(config, data, run_dir, None)
    except DataError as error:
        raise TrainError(str(error), EXIT_DATA) from None
    except Stopped:
        again = "the same command with" if repeated else "--resume auto"
        text = f"stopped; the state is saved. To go on: {again} --run_dir {run_dir}"
        raise TrainError(text, EXIT_STOPPED) from None
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise disk_full(error, run_dir, repeated) from None


def directory_of(config: TrainConfig) -> Path:
    """Lightning's other processes find the one that the first has chosen."""
    new = f"runs/{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(config.run_dir or os.environ.setdefault("TRAINER_RUN_DIR", new))


def disk_full(error: OSError, run_dir: Path, repeated: bool) -> TrainError:
    saved = any((run_dir / "checkpoints").glob("*.ckpt")) and not repeated
    again = (
        "the checkpoint before is kept. To go on: free space, then --resume auto --run_dir"
        if saved
        else "to go on: free space, then the same command, with --run_dir"
    )
    return TrainError(f"the disk is full ({error.strerror}); {again} {run_dir}", EXIT_DISK)


def tell(text: str) -> None:
    """The last line, and what is still to be written; where the log's own disk is full, the exit
    code alone has to do."""
    try:
        print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:
        sys.stdout = sys.stderr = open(os.devnull, "w")


def main(arguments: Sequence[str] | None = None) -> int:
    # Before torch is imported: GPU indices are then nvidia-smi's, and deterministic products have
    # their workspace.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # DDP warns, once the last layer is trained alone no more, that no weight waits any longer.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        options, config, start = parse(arguments)
        if options.print_config:
            print(to_yaml(config), end="")
            return 0
        quiet()
        if not is_first_process():
            end_with_parent()
        run(options, config, start)
    except ConfigError as error:
        for text in error.errors:
            print(f"error: {text}", file=sys.stderr)
        return EXIT_USAGE
    except TrainError as error:
        if not is_first_process() and error.code in (EXIT_STOPPED, EXIT_DIVERGED):
            # All processes know, and the first one tells. Another code than 0 here would get it
            # killed while it saves.
            return 0
        tell(f"{'' if error.code == EXIT_STOPPED else 'error: '}{error}")
        return error.code
    finally:
        os.environ.pop("TRAINER_RUN_DIR", None)
        end_others()
    return 0


def command() -> NoReturn:
    """main() as a process of its own."""
    code = main()
    if not is_first_process():
        # Its communication threads have nobody left to talk to: unwinding them aborts the process
        # now and then.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    command()
