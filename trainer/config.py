"""What a training is told: one frozen type, filled from a recipe and the command line. Imports no
torch: laptops read it too."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

RECIPES = Path(__file__).parent / "recipes"

CHOICES: Mapping[str, tuple[str, ...]] = {
    "accelerator": ("gpu", "cpu", "auto"),
    "loader": ("auto", "workers", "device"),
    "optimizer": ("adam", "adamw", "muon"),
    "schedule": ("restarts", "triangle"),
    "last_cycle": ("cut", "compressed"),
    "flip": ("none", "random", "alternate"),
    "precision": ("auto", "32-true", "bf16-mixed"),
    "compile": ("auto", "true", "false"),
    "tta": ("none", "flip", "shift"),
    "class_weights": ("none", "balanced"),
}
AT_LEAST: Mapping[str, float] = {
    "max_epochs": 1,
    "batch_size": 1,
    "accumulate_grad_batches": 1,
    "num_workers": 0,
    "prefetch_factor": 1,
    "max_devices": 0,
    "learning_rate_batch": 0,
    "bias_learning_rate": 0,
    "head_learning_rate": 0,
    "weight_decay": 0,
    "gradient_clip_val": 0,
    "warmup_fraction": 0,
    "final_fraction": 0,
    "patience": 0,
    "min_delta": 0,
    "mixup_prob": 0,
    "mixup_alpha": 0,
    "label_smoothing": 0,
    "image_size": 0,
    "crop_scale": 0.01,
    "crop_padding": 0,
    "cutout": 0,
    "validation_fraction": 0,
    "validation_max": 0,
    "train_images": 0,
    "whiten_bias_epochs": 0,
    "part_images": 0,
    "restart_epochs": 1,
    "seed": 0,
    "depth": 2,
    "max_restores": 0,
    "momentum": 0,
    "muon_momentum": 0,
}
AT_MOST: Mapping[str, float] = {
    "mixup_prob": 1,
    "label_smoothing": 0.999,
    "warmup_fraction": 1,
    "final_fraction": 1,
    "validation_fraction": 0.9,
    "image_size": 1024,
    "crop_scale": 1,
    "crop_padding": 16,
    "cutout": 32,
    "seed": 2**31 - 1,
    "momentum": 0.9999,
    "muon_momentum": 0.9999,
    "depth": 3,
    "max_epochs": 100_000,
    "batch_size": 1_000_000,
    "accumulate_grad_batches": 100_000,
    "num_workers": 4096,
    "prefetch_factor": 4096,
}


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
    # path,label[,split], or a zip or tar of these. An empty or missing directory gets CIFAR-10,
    # downloaded.
    data: str = "data"
    # Pixels per side; 0: as the images are, at most 224.
    image_size: int = 0
    # Leave damaged files out, instead of ending with their names.
    skip_damaged: bool = False
    # Where the run writes; empty: runs/<time>.
    run_dir: str = ""
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
    # `muon`: learning_rate and muon_momentum for the convolutions; Nesterov SGD for biases and
    # head, on the loss summed over the batch.
    muon_momentum: float = 0.6
    bias_learning_rate: float = 0.053
    head_learning_rate: float = 0.67
    momentum: float = 0.85

    # `restarts`: cosine from the peak to zero every restart_epochs (T_0). Where the epochs are no
    # multiple of it the last cycle is cut off, or compressed so that it ends at zero. `triangle`:
    # linear up during warmup_fraction, then down.
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


def suggestion(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def shown(value: object) -> str:
    """A value in an error message: short, whatever it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    try:
        text = short.repr(value)
    except ValueError:  # python refuses to write out very long numbers
        return "a number that is too long"
    return text if len(text) <= 100 else f"{text[:100]}…"


def parse_value(kind: Any, value: object) -> object:
    """A value of a field's type from YAML or from the command line's text; raises ValueError with
    what it must be."""
    text = value.strip() if isinstance(value, str) else value
    if kind is bool:
        known = {
            True: True,
            False: False,
            "true": True,
            "false": False,
            "yes": True,
            "no": False,
            "1": True,
            "0": False,
        }
        if isinstance(text, str):
            text = text.lower()
        if not isinstance(text, (bool, str)) or text not in known:
            raise ValueError("must be true or false")
        return known[text]
    if kind is int:
        number = _number(text)
        if number is None or number != int(number):
            raise ValueError("must be a whole number")
        return int(number)
    if kind is float:
        number = _number(text)
        if number is None:
            raise ValueError("must be a number")
        return number
    if kind == tuple[int, ...]:
        parts = text.replace(",", " ").split() if isinstance(text, str) else text
        if not isinstance(parts, (list, tuple)) or not parts or len(parts) > 16:
            raise ValueError("must be numbers such as 64,128,256")
        numbers = [_number(part) for part in parts]
        if any(n is None or n != int(n) or not 1 <= n <= 8192 for n in numbers):
            raise ValueError("must be numbers such as 64,128,256")
        return tuple(int(n) for n in numbers if n is not None)
    if isinstance(value, bool):
        return "true" if value else "false"
    if (
        not isinstance(value, (str, int, float))
        or (isinstance(value, int) and abs(value) > 1e18)
        or "\0" in str(value)
    ):
        raise ValueError("must be a text")
    return str(value)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def check_values(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(field, what is wrong) for each value out of its range."""
    errors = []
    for name, value in values.items():
        if name in CHOICES and value not in CHOICES[name]:
            errors.append(
                (name, f"{name} must be one of {', '.join(CHOICES[name])}, not {shown(value)}")
            )
        if name in AT_LEAST and value < AT_LEAST[name]:
            errors.append((name, f"{name} must be at least {AT_LEAST[name]:g}, not {value:g}"))
        if name in AT_MOST and value > AT_MOST[name]:
            errors.append((name, f"{name} must be at most {AT_MOST[name]:g}, not {value:g}"))
    if "learning_rate" in values and values["learning_rate"] <= 0:
        errors.append(
            ("learning_rate", f"learning_rate must be above 0, not {values['learning_rate']:g}")
        )
    errors += check_network(values)
    devices = str(values.get("devices", "auto"))
    if devices != "auto" and not re.fullmatch(r"\s*[0-9]{1,4}\s*(,\s*[0-9]{1,4}\s*)*", devices):
        errors.append(
            ("devices", f"devices must be auto or numbers such as 0,1, not {shown(devices)}")
        )
    return errors


def check_network(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    network, pretrained = values.get("network", "residual"), values.get("pretrained", "false")
    errors = []
    if network not in ("residual", "speed") and not re.fullmatch(r"[\w.]+:[\w.-]+", network):
        known = "residual, speed, torchvision:NAME, timm:NAME, module:function"
        errors.append(("network", f"network must be one of {known}, not {shown(network)}"))
    elif pretrained != "false" and ":" not in network:
        errors.append(("pretrained", f"there are no pretrained weights for {network}"))
    elif pretrained == "true" and network.partition(":")[0] not in ("torchvision", "timm"):
        errors.append(("pretrained", f"pretrained true: {network} has none; name their file"))
    return errors


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
