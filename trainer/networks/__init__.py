"""Networks: our own, and those of torchvision, timm or the user's project. All take uint8 images
[B, 3, H, W], normalise them themselves and give logits [B, classes]."""

from __future__ import annotations

from torch import nn

from trainer.config import TrainConfig
from trainer.networks.cifar import Normalise, ResidualCNN, SpeedCNN
from trainer.networks.elsewhere import from_elsewhere, load_pretrained

__all__ = ["Normalise", "ResidualCNN", "SpeedCNN", "layers_of", "load_pretrained", "make_network"]

LARGE_IMAGES = 64
"""Images with more pixels per side reach the residual network's stages at a quarter of them."""


def make_network(config: TrainConfig, classes: int) -> nn.Module:
    """Not trained: `load_pretrained` brings the weights for a training that begins. Raises
    TrainError where there is no such network."""
    if ":" in config.network:
        return from_elsewhere(config.network, classes)
    if config.network == "speed":
        first, second, third = config.widths
        return SpeedCNN(classes, (first, second, third), config.depth)
    return ResidualCNN(classes, config.widths, config.image_size > LARGE_IMAGES)


def layers_of(network: nn.Module) -> list[nn.Module]:
    """All parts with weights of their own, in the network's order: the classifier is the last."""
    return [part for part in network.modules() if any(True for _ in part.parameters(False))]
