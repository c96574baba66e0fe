"""What a training is told: one frozen type, filled from a recipe and the command line. Imports no
torch: laptops read it too."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from trainer.values import check_values, parse_value, shown, suggestion

RECIPES = Path(__file__).parent / "recipes"


class ConfigError(Exception):
    """Every mistake in a recipe or a command line, found at once."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


@dataclass(frozen=True)
class TrainConfig:
    """All that a training depends on. Each field can be set by a recipe, by `--field value` and by
    `--set field=value`."""

    # The recipe whose values these are.
    recipe: str = "standard"
    # A CIFAR-10 archive or directory, or `synthetic`, or images of one's own: a folder with
    # train/<class>/* and test/<class>/* (and perhaps val/), one with <class>/*, a CSV of
    # path,label[,split], or a zip or tar of these. An empty directory gets CIFAR-10,
    # downloaded, and so does a missing one that is this default or is called cifar10. Images of 16
    # bits that hold no value above 4095 are taken for 12 bits.
    data: str = "data"
    # Pixels per side; 0: as the images are, at most 224.
    image_size: int = 0
    # Leave damaged files out, instead of ending with their names.
    skip_damaged: bool = False
    # Where the run writes; empty: runs/<time>.
    run_dir: str = ""
    # tensorboard; or wandb or mlflow, where the package is installed, beside it.
    logger: str = "tensorboard"
    # GPUs by nvidia-smi's index, such as 0,1, or auto for all; on a CPU the number of processes.
    devices: str = "auto"
    # At most so many devices of those; 0: no limit.
    max_devices: int = 0
    # gpu refuses to go on without one; auto takes what there is.
    accelerator: str = "gpu"
    # Order, augmentation and initial weights follow from it.
    seed: int = 1
    # The same bits on the same hardware, at some cost on GPUs.
    deterministic: bool = False

    # How long, and in which portions. The effective batch is batch_size × accumulate_grad_batches ×
    # devices.
    max_epochs: int = 150
    batch_size: int = 128
    accumulate_grad_batches: int = 1

    # So many images go through the network at once, their gradients added up; 0: all on a GPU, what
    # fits the cache on a CPU.
    part_images: int = 0

    # Loading: in worker processes, or from a copy of all images on the device; auto takes the
    # device where they fit.
    loader: str = "auto"
    num_workers: int = 8
    prefetch_factor: int = 2
    pin_memory: bool = True
    persistent_workers: bool = True

    # The network: residual, speed, torchvision:NAME, timm:NAME, or module:function of one's own,
    # which takes the number of classes and gives a torch module for normalised images.
    network: str = "residual"
    # Of a network from elsewhere: begin with the library's weights (true) or with those of a file.
    pretrained: str = "false"
    # Of our own: the channels of the stages, and for `speed` the convolutions per stage.
    widths: tuple[int, ...] = (128, 256, 512, 768)
    depth: int = 2
    # `speed`: the bias of the frozen whitening convolution is trained for so many epochs.
    whiten_bias_epochs: int = 3

    # The peak learning rate for learning_rate_batch images of effective batch, to which it is
    # scaled; 0: not scaled.
    optimizer: str = "adam"
    learning_rate: float = 0.001
    learning_rate_batch: int = 64
    amsgrad: bool = True
    weight_decay: float = 0.0
    gradient_clip_val: float = 1.0
    # adam and adamw: the first layers' rate as a share of the last one's; between them it grows
    # evenly, in the network's own order. frozen_fraction: so many of the first layers, as a share
    # of all, are not trained at all. adamw leaves biases and norms out of weight_decay.
    lowest_rate: float = 1.0
    frozen_fraction: float = 0.0
    # The last layer is trained alone for this share of the training, and then all are.
    head_fraction: float = 0.0
    # Evaluate and keep an exponential moving average of the weights; 0: the weights themselves.
    ema_decay: float = 0.0
    # `muon`: learning_rate and muon_momentum for the convolutions; Nesterov SGD for biases and
    # head, on the loss summed over the batch.
    muon_momentum: float = 0.6
    bias_learning_rate: float = 0.053
    head_learning_rate: float = 0.67
    momentum: float = 0.85

    # `restarts`: cosine from the peak to zero every restart_epochs (T_0). Where the epochs are no
    # multiple of it the last cycle is cut off, or compressed so that it ends at zero. `triangle`:
    # linear up during warmup_fraction, then down to final_fraction of the peak. `cosine`: down by a
    # half cosine.
    schedule: str = "restarts"
    restart_epochs: int = 40
    last_cycle: str = "cut"
    warmup_fraction: float = 0.0
    final_fraction: float = 0.0

    # Early stopping on the validation accuracy; patience 0: never.
    patience: int = 50
    min_delta: float = 0.0002
    # A loss that is not finite, or an accuracy fallen to chance: back to the last good state with
    # half the rate, so often.
    max_restores: int = 2

    # The training in equal portions, each with images of so many pixels per side, 32 standing for
    # image_size: small ones cost less while much is learnt.
    resolutions: tuple[int, ...] = (32,)
    # Augmentation. crop_padding: shifts of up to so many pixels; from images of more than 64 pixels
    # a random part is cut instead, of at least crop_scale of the area. cutout: side of the square
    # that is greyed out, of 32.
    flip: str = "random"
    crop_scale: float = 0.35
    crop_padding: int = 4
    cutout: int = 0
    mixup_prob: float = 0.5
    mixup_alpha: float = 0.2
    label_smoothing: float = 0.0
    # balanced: rare classes weigh as much in the loss as frequent ones.
    class_weights: str = "none"

    # The part of the training images that steers early stopping and the choice of the best epoch; 0
    # trains on all of them.
    validation_fraction: float = 0.1
    validation_max: int = 5000
    # Train on so many images, evenly over the classes; 0: on all.
    train_images: int = 0

    # auto: bf16-mixed on a GPU that has it, else 32-true.
    precision: str = "auto"
    channels_last: bool = True
    compile: str = "auto"
    # Average over the mirrored (flip) and slightly shifted (shift) image at evaluation.
    tta: str = "none"


FIELDS: Mapping[str, type] = get_type_hints(TrainConfig)


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_config(recipe: str, overrides: Mapping[str, object] | None = None) -> TrainConfig:
    """A recipe by name or by the path of a YAML file, with `overrides` on top. Raises ConfigError
    with every mistake."""
    errors: list[str] = []
    values = read_recipe(recipe, errors)
    if overrides and "recipe" in overrides:
        errors.append("recipe is no field to change: choose one with --recipe")
    values.update({name: value for name, value in (overrides or {}).items() if name != "recipe"})
    typed, wrong = parse_fields(values, errors)
    for name, text in check_values(typed):
        wrong.add(name)
        errors.append(text)
    config = TrainConfig(**{name: value for name, value in typed.items() if name not in wrong})
    errors += [text for names, text in check_together(config) if wrong.isdisjoint(names)]
    if errors:
        raise ConfigError(errors)
    return config


def parse_fields(
    values: Mapping[str, object], errors: list[str]
) -> tuple[dict[str, Any], set[str]]:
    """Typed values, and the names of the fields whose value is none; what is wrong is added to
    `errors`."""
    typed: dict[str, Any] = {}
    wrong = set()
    for name, value in values.items():
        if name not in FIELDS:
            errors.append(f"unknown field {shown(name)}{suggestion(name, FIELDS)}")
            continue
        try:
            typed[name] = parse_value(FIELDS[name], value)
        except ValueError as error:
            wrong.add(name)
            errors.append(f"{name} {error}, not {shown(value)}")
    return typed, wrong


def read_recipe(recipe: str, errors: list[str]) -> dict[str, object]:
    """The values of a recipe or of a file, which may name with `recipe` the one that it changes."""
    if recipe in recipe_names():
        return {**_read_yaml(RECIPES / f"{recipe}.yaml", errors), "recipe": recipe}
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml") or not os.path.isfile(path):
        hint, names = suggestion(recipe, recipe_names()), ", ".join(recipe_names())
        errors.append(
            f"unknown recipe {shown(recipe)}{hint}; there are {names}, or the path of a .yaml file"
        )
        return {}
    values = _read_yaml(path, errors)
    base = values.setdefault("recipe", path.stem)
    if base in recipe_names():
        return {**read_recipe(str(base), errors), **values}
    # What --print_config showed for a file of one's own holds every field, and its name stands for
    # nothing else.
    if base != path.stem and FIELDS.keys() - values.keys():
        errors.append(
            f"{path.name} changes an unknown recipe"
            f" {shown(base)}{suggestion(str(base), recipe_names())}"
        )
    return values


def _read_yaml(path: Path, errors: list[str]) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # hostile YAML raises many kinds: of numbers, dates and depth too
        errors.append(f"the recipe {path} can't be read: {' '.join(str(error).split())[:200]}")
        return {}
    if not isinstance(values, dict):
        errors.append(f"the recipe {path} must be a list of `field: value` lines")
        return {}
    return {name if isinstance(name, str) else shown(name): value for name, value in values.items()}


def check_together(config: TrainConfig) -> list[tuple[set[str], str]]:
    """What each field allows alone but not with the others: (the fields, what is wrong)."""
    errors = []
    if config.network == "speed" and len(config.widths) != 3:
        text = (
            "the network speed has three stages: widths must be three numbers, not"
            f" {len(config.widths)}"
        )
        errors.append(({"network", "widths"}, text))
    if not all(8 <= pixels <= 64 for pixels in config.resolutions):
        errors.append(
            (
                {"resolutions"},
                (
                    "resolutions must lie between 8 and 64 pixels, not"
                    f" {shown(list(config.resolutions))}"
                ),
            )
        )
    if config.optimizer == "muon" and config.network != "speed":
        errors.append(
            (
                {"optimizer", "network"},
                "the optimizer muon needs the network speed, which it was written for",
            )
        )
    if config.mixup_prob > 0 and config.mixup_alpha <= 0:
        errors.append(
            (
                {"mixup_prob", "mixup_alpha"},
                "mixup needs mixup_alpha above 0; mixup_prob 0 switches it off",
            )
        )
    if config.patience and not config.validation_fraction:
        text = "early stopping needs a validation split: set validation_fraction, or patience 0"
        errors.append(({"patience", "validation_fraction"}, text))
    return errors


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values: JSON, YAML and checkpoints that load with weights_only hold nothing else."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a checkpoint; fields that this version doesn't know are left out."""
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in FIELDS
    }
    # Before there was such a field all images were brought to 32 pixels.
    known["image_size"] = known.get("image_size") or 32
    return TrainConfig(**known)


def to_yaml(config: TrainConfig) -> str:
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None)


def effective_batch(config: TrainConfig, devices: int) -> int:
    """Images per step of the optimizer, over all devices."""
    return config.batch_size * config.accumulate_grad_batches * devices


def peak_learning_rate(config: TrainConfig, devices: int) -> float:
    """Linear scaling (Goyal et al. 2017, arXiv 1706.02677) from learning_rate_batch images to the
    effective batch."""
    if not config.learning_rate_batch:
        return config.learning_rate
    return config.learning_rate * effective_batch(config, devices) / config.learning_rate_batch
