"""The command line: options in, a configuration and perhaps a checkpoint out, or every mistake at
once."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config import FIELDS, ConfigError, TrainConfig, from_dict, load_config, to_dict
from trainer.processes import say
from trainer.values import shown, suggestion

EXIT_USAGE, EXIT_DATA, EXIT_DEVICE, EXIT_DIVERGED, EXIT_MEMORY, EXIT_DISK, EXIT_STOPPED = (
    2,
    3,
    4,
    5,
    6,
    7,
    143,
)


FIXED = (
    "network",
    "widths",
    "depth",
    "optimizer",
    "amsgrad",
    "lowest_rate",
    "frozen_fraction",
    "validation_fraction",
    "validation_max",
)
"""What the weights, the optimizer's state and the honesty of the validation split depend on."""


ELSEWHERE = (
    "recipe",
    "run_dir",
    "devices",
    "num_workers",
    "prefetch_factor",
    "pin_memory",
    "persistent_workers",
)
"""Where and how a training runs, not what it is: may differ between seeds that are averaged."""


class TrainError(Exception):
    """Ends the training with one line and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def no_logger(name: str) -> TrainError:
    text = f"logger {name}: the package is not installed: pip install {name}"
    return TrainError(text, EXIT_USAGE)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.train",
        description=(
            "Train a network on CIFAR-10 or a folder of images. Every field that --print_config"
            " shows is an option of its own: --max_epochs 10."
        ),
        epilog=(
            "exit codes: 0 finished, 2 wrong options, 3 no usable images, 4 no such device, 5"
            " diverged, 6 out of memory, 7 disk full, 143 stopped"
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe",
        help="standard, fast, demo or another of trainer/recipes, or the path of a .yaml file",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the recipe to change",
    )
    parser.add_argument(
        "--resume",
        metavar="PATH|auto",
        help="go on from a checkpoint or a run's folder; auto: the newest of --run_dir that loads",
    )
    parser.add_argument(
        "--repeat",
        type=int,
        default=1,
        metavar="N",
        help="train N seeds; mean and standard deviation in the summary",
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="print the effective values as YAML, and train nothing",
    )
    for name, kind in FIELDS.items():
        if name != "recipe":
            alone: dict[str, Any] = {"nargs": "?", "const": "true"} if kind is bool else {}
            parser.add_argument(
                f"--{name}", default=None, metavar="VALUE", help=argparse.SUPPRESS, **alone
            )
    return parser


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a training goes on: the checkpoint's file and content."""

    path: Path
    content: dict[str, Any]


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, TrainConfig, Start | None]:
    """Options, configuration, and the checkpoint to go on from. A resumed training keeps its
    configuration; options change it."""
    options, rest = make_parser().parse_known_args(arguments)
    given = {name: getattr(options, name) for name in FIELDS if name != "recipe"}
    overrides: dict[str, object] = {
        name: value for name, value in given.items() if value is not None
    }
    errors = unknown_options(rest)
    for item in options.set:
        name, sign, value = item.partition("=")
        if sign:
            overrides[name] = value
        else:
            errors.append(f"--set needs field=value, not {shown(item)}")
    if options.repeat < 1:
        errors.append("--repeat must be at least 1")
    if options.repeat > 1 and options.resume:
        errors.append("--repeat goes on by itself: give the same --run_dir, without --resume")
    start = (
        find_start(options.resume, str(overrides.get("run_dir") or ""))
        if options.resume and not errors
        else None
    )
    try:
        config = (
            load_config(options.recipe or "standard", overrides)
            if start is None
            else resumed_config(start, options.recipe, overrides)
        )
    except ConfigError as error:
        raise ConfigError(errors + error.errors) from None
    if errors:
        raise ConfigError(errors)
    return options, config, start


def unknown_options(rest: Sequence[str]) -> list[str]:
    """What is wrong with the words that no option took; the value of an unknown option is not named
    again."""
    errors = []
    for before, word in zip(["", *rest], rest, strict=False):
        if word.startswith("--"):
            name = word.partition("=")[0]
            near = suggestion(name.strip("-").replace("-", "_"), FIELDS)
            errors.append(f"unknown option {shown(name)}{near.replace('mean ', 'mean --')}")
        elif not before.startswith("--"):
            errors.append(f"an option is missing before {shown(word)}")
    return errors


def resumed_config(
    start: Start, recipe: str | None, overrides: Mapping[str, object]
) -> TrainConfig:
    """The checkpoint's configuration with `overrides`. Raises ConfigError, also for what a trained
    network can't change."""
    before = from_dict(start.content["hyper_parameters"]["config"])
    base = {name: value for name, value in to_dict(before).items() if name != "recipe"}
    # Every field is given, so the recipe named here stands for none.
    config = load_config(
        "standard", {**base, "run_dir": str(start.path.resolve().parent.parent), **overrides}
    )
    errors = [
        f"{name} can't change when a training goes on: it was {shown(getattr(before, name))}"
        for name in FIXED
        if getattr(config, name) != getattr(before, name)
    ]
    if recipe and Path(recipe).stem != before.recipe:
        errors.append(f"the checkpoint was made with the recipe {before.recipe}, not {recipe}")
    if errors:
        raise ConfigError(errors)
    return dataclasses.replace(config, recipe=before.recipe)


def changed_values(before: Mapping[str, Any], config: TrainConfig) -> str:
    """What a training that goes on does in another way than the one of this configuration. Where
    its images lie is not what they are."""
    old, new = from_dict(before), from_dict(to_dict(config))
    return ", ".join(
        f"{name} {shown(value)} instead of {shown(getattr(old, name))}"
        for name, value in vars(new).items()
        if name not in (*ELSEWHERE, "data") and value != getattr(old, name)
    )


def find_start(resume: str, run_dir: str) -> Start:
    """The checkpoint to go on from. Raises TrainError where there is none: a training must not
    restart in silence."""
    from trainer.checkpoints import load_checkpoint, newest_that_loads

    if resume != "auto" and os.path.isdir(resume):
        resume, run_dir = "auto", resume
    if resume != "auto":
        try:
            return Start(Path(resume), load_checkpoint(Path(resume)))
        except ValueError as error:
            raise TrainError(f"--resume: {error}", EXIT_USAGE) from None
    if not run_dir:
        raise TrainError("--resume auto needs --run_dir, the run to go on with", EXIT_USAGE)
    found = newest_that_loads(Path(run_dir) / "checkpoints")
    if found is None:
        raise TrainError(
            f"no checkpoint in {Path(run_dir) / 'checkpoints'} loads; without --resume a new"
            " training begins",
            EXIT_USAGE,
        )
    path, content, wrong = found
    for text in wrong:
        say(f"passed over: {text}")
    say(f"resuming from {path}")
    return Start(path, content)
