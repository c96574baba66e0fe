"""Networks from elsewhere: `torchvision:NAME`, `timm:NAME`, or `module:function` of the user's
project, which takes the number of classes and gives a module."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.networks.cifar import Normalise
from trainer.options import EXIT_USAGE, TrainError
from trainer.processes import say

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as pretrained networks expect it where they do not say otherwise."""
CLASSIFIER_TENSORS = 2
ERRORS = (ImportError, AttributeError, ValueError, RuntimeError, TypeError)
"""Of an import, of a library's look-up and of a network that is made."""


class FromElsewhere(nn.Module):
    """A network that expects normalised images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        about: Any = getattr(network, "pretrained_cfg", {})
        self.normalise = Normalise(tuple(about.get("mean", MEAN)), tuple(about.get("std", STD)))
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.network(self.normalise(images)))


def find_maker(name: str) -> Callable[[int], Any]:
    """Of a network of so many classes. Raises TrainError."""
    place, _, what = name.partition(":")
    try:
        if place == "torchvision":
            make = importlib.import_module("torchvision").models.get_model_builder(what)
        elif place == "timm":
            make = partial(importlib.import_module("timm").create_model, what)
        else:
            own: Callable[[int], Any] = getattr(importlib.import_module(place), what)
            return own
    except ERRORS as error:
        raise wrong(f"network {name}", error) from None
    return lambda classes: make(num_classes=classes)


def from_elsewhere(name: str, classes: int) -> FromElsewhere:
    make = find_maker(name)
    try:
        network = make(classes)
    except ERRORS as error:
        raise wrong(f"network {name}", error) from None
    if not isinstance(network, nn.Module):
        raise TrainError(f"network {name}: it gives no torch.nn.Module", EXIT_USAGE)
    return FromElsewhere(network)


def load_pretrained(network: nn.Module, name: str, pretrained: str) -> None:
    """Weights of the library (`true`) or of a file, for all but the classifier's last layer, whose
    classes are others."""
    assert isinstance(network, FromElsewhere)
    place, _, what = name.partition(":")
    try:
        if pretrained.endswith(".safetensors"):
            state = importlib.import_module("safetensors.torch").load_file(pretrained)
        elif pretrained != "true":
            state = torch.load(pretrained, map_location="cpu", weights_only=True)
        elif place == "torchvision":
            models = importlib.import_module("torchvision").models
            state = models.get_model_weights(what).DEFAULT.get_state_dict(progress=False)
        else:
            state = importlib.import_module("timm").create_model(what, pretrained=True).state_dict()
    except Exception as error:  # of the network, the hub and the file: they have no common kind
        raise wrong(f"pretrained {pretrained}", error) from None
    fit_in(network.network, state.get("state_dict", state), pretrained)


def fit_in(network: nn.Module, state: Mapping[str, Tensor], whence: str) -> None:
    """By name; or one by one in order, where a network of other names has as many of the same
    shapes."""
    own = network.state_dict()
    fitting = fitting_by_name(own, state)
    if len(fitting) < len(own) / 2 and len(state) == len(own):
        in_order = fitting_by_name(own, dict(zip(own, state.values(), strict=True)))
        if len(in_order) >= len(own) - CLASSIFIER_TENSORS:
            say(f"pretrained {whence}: its weights have other names, and fit one by one in order")
            fitting = in_order
    if len(fitting) < len(own) / 2:
        raise TrainError(
            f"pretrained {whence}: only {len(fitting)} of {len(own)} weights fit this network",
            EXIT_USAGE,
        )
    network.load_state_dict(fitting, strict=False)


def fitting_by_name(own: Mapping[str, Tensor], state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in state.items()
        if key in own and own[key].shape == getattr(value, "shape", None)
    }


def wrong(what: str, error: Exception) -> TrainError:
    said = " ".join(str(error).split())[:200]
    if isinstance(error, ModuleNotFoundError) and error.name in ("timm", "safetensors"):
        said += f": pip install {error.name}"
    return TrainError(f"{what} can't be had: {type(error).__name__}: {said}", EXIT_USAGE)
