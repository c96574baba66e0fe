"""What each field may be: texts and YAML as values of its type, ranges and choices, and how a wrong
one is named."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

CHOICES: Mapping[str, tuple[str, ...]] = {
    "accelerator": ("gpu", "cpu", "auto"),
    "logger": ("tensorboard", "wandb", "mlflow"),
    "loader": ("auto", "workers", "device"),
    "optimizer": ("adam", "adamw", "muon"),
    "schedule": ("restarts", "triangle", "cosine"),
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
    "lowest_rate": 0.001,
    "frozen_fraction": 0,
    "head_fraction": 0,
    "ema_decay": 0,
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
    "lowest_rate": 1,
    "frozen_fraction": 0.95,
    "head_fraction": 0.95,
    "ema_decay": 0.99999,
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
    if kind is str:
        return _text(value)
    return PARSERS[kind](value.strip() if isinstance(value, str) else value)


def _truth(value: object) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in words:
        raise ValueError("must be true or false")
    return words[value.lower()]


def _whole(value: object) -> int:
    number = _finite(value)
    if number is None or number != int(number):
        raise ValueError("must be a whole number")
    return int(number)


def _number(value: object) -> float:
    number = _finite(value)
    if number is None:
        raise ValueError("must be a number")
    return number


def _numbers(value: object) -> tuple[int, ...]:
    # As --print_config shows them, too.
    parts = value.strip("[]").replace(",", " ").split() if isinstance(value, str) else value
    numbers = [_finite(part) for part in parts] if isinstance(parts, (list, tuple)) else []
    found = [int(n) for n in numbers if n is not None and n == int(n) and 1 <= n <= 8192]
    if not 0 < len(numbers) == len(found) <= 16:
        raise ValueError("must be numbers such as 64,128,256")
    return tuple(found)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    too_long = isinstance(value, int) and abs(value) > 1e18
    if not isinstance(value, (str, int, float)) or too_long or "\0" in str(value):
        raise ValueError("must be a text")
    return str(value)


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


PARSERS: Mapping[Any, Callable[[object], object]] = {
    bool: _truth,
    int: _whole,
    float: _number,
    tuple[int, ...]: _numbers,
}


def check_values(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(field, what is wrong) for each value out of its range."""
    errors = []
    for name, value in values.items():
        if name in CHOICES and value not in CHOICES[name]:
            errors.append(
                (name, f"{name} must be one of {', '.join(CHOICES[name])}, not {shown(value)}")
            )
        if name in AT_LEAST and value < AT_LEAST[name]:
            errors.append((name, f"{name} must be at least {AT_LEAST[name]:g}, not {value:.15g}"))
        if name in AT_MOST and value > AT_MOST[name]:
            errors.append((name, f"{name} must be at most {AT_MOST[name]:.15g}, not {value:.15g}"))
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
