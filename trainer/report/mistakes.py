"""The worst mistakes on the test images, and where the network looked (Grad-CAM)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.images import Arrays, Files
from trainer.scores import Answers

SHOWN = 12


@dataclass(frozen=True)
class Mistakes:
    """Of K images: uint8 [K, 3, H, W]; heat from 0 to 1 [K, H, W], None where the network has no
    map of features; true class, the one it was taken for, with which probability; the file."""

    images: Tensor
    heat: Tensor | None
    truth: list[int]
    taken: list[int]
    confidence: list[float]
    files: list[str]

    def __len__(self) -> int:
        return len(self.truth)


def find_mistakes(network: nn.Module, images: Arrays | Files, answers: Answers) -> Mistakes:
    """The network is left in evaluation mode."""
    places = answers.worst(SHOWN)
    pixels = images.batch(places)
    return Mistakes(
        pixels,
        heat_maps(network, pixels, answers.taken[places]) if len(places) else None,
        answers.truth[places].tolist(),
        answers.taken[places].tolist(),
        answers.confidence[places].tolist(),
        [
            os.path.relpath(images.source.path(place), images.source.root)
            for place in images.places[places].tolist()
        ]
        if isinstance(images, Files)
        else [],
    )


def heat_maps(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor | None:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) of the last feature map [B, C, h, w] that
    any module gives: which places spoke for the class. [B, H, W] from 0 to 1, on the CPU."""
    device = next(network.parameters()).device
    last: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] > 1:
            last[:] = [output]

    hooks = [module.register_forward_hook(keep) for module in network.modules()]
    network.eval()
    try:
        # Float images, so that there is a gradient where every weight is frozen.
        pixels = images.to(device).float().requires_grad_()
        logits = network(pixels.contiguous(memory_format=torch.channels_last))
        chosen = logits.gather(1, classes.to(device)[:, None]).sum()
        if not last or last[0] is pixels:
            return None
        [gradient] = torch.autograd.grad(chosen, last[0], allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    if gradient is None:
        return None
    weights = gradient.mean((2, 3), keepdim=True)
    heat = (weights * last[0]).sum(1, keepdim=True).relu().float().detach()
    heat = heat / heat.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    size = (images.shape[-2], images.shape[-1])
    return F.interpolate(heat, size=size, mode="bilinear")[:, 0].cpu()
