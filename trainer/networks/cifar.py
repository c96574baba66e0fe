"""Our own networks, for small images."""

from __future__ import annotations

import itertools
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's training images, per channel, of pixels from 0 to 1."""
WHITENING_EPS = 5e-4


class Normalise(nn.Module):
    """Pixels 0 … 255 to mean 0 and deviation 1 per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.to(self.mean.dtype) - self.mean) / self.std


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a skip connection (He et al. 2016, arXiv 1603.05027); a 1×1 one
    where the width changes."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outside)
        self.skip: nn.Module = nn.Identity()
        if inside != outside:
            self.skip = nn.Sequential(
                nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)), inplace=True)
        y = self.second_norm(self.second(y))
        return F.relu(y + self.skip(x), inplace=True)


class ResidualCNN(nn.Module):
    """The recipe `standard`: stages of 128, 256, 512 and 768 channels with skip connections, each
    with half the pixels per side of the one before."""

    def __init__(self, classes: int, widths: tuple[int, ...], large: bool = False) -> None:
        super().__init__()
        self.normalise = Normalise()
        first = (
            # As in He et al. 2015 (arXiv 1512.03385).
            (nn.Conv2d(3, widths[0], 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1))
            if large
            else (nn.Conv2d(3, widths[0], 3, padding=1, bias=False),)
        )
        self.stem = nn.Sequential(*first, nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True))
        blocks: list[nn.Module] = [ResidualBlock(widths[0], widths[0])]
        for inside, outside in itertools.pairwise(widths):
            blocks += [nn.MaxPool2d(2, ceil_mode=True), ResidualBlock(inside, outside)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.stem(self.normalise(images)))
        return cast(Tensor, self.head(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class SpeedGroup(nn.Module):
    """conv, pool, norm, GELU, then one or two more of conv, norm, GELU; with two, a residual from
    the first activation."""

    def __init__(self, inside: int, outside: int, depth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inside if number == 0 else outside, outside, 3, padding=1, bias=False)
            for number in range(depth)
        )
        # airbench: the scale stays 1; running statistics follow fast, for a training of few steps.
        momentum = 0.4 if depth == 2 else 0.1
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(outside, eps=1e-12, momentum=momentum) for _ in range(depth)
        )
        for norm in self.norms:
            cast(nn.BatchNorm2d, norm).weight.requires_grad_(False)
        for conv in self.convs:
            weight = cast(nn.Conv2d, conv).weight
            nn.init.dirac_(weight.data[: weight.size(1)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](x), 2)))
        if len(self.convs) == 2:
            return F.gelu(self.norms[1](self.convs[1](x)))
        y = F.gelu(self.norms[1](self.convs[1](x)))
        return F.gelu(self.norms[2](self.convs[2](y)) + x)


class SpeedCNN(nn.Module):
    """After airbench's network: a frozen whitening convolution, three groups, a scaled head without
    bias."""

    def __init__(self, classes: int, widths: tuple[int, int, int], depth: int) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.whiten = nn.Conv2d(3, 24, 2, bias=True)
        self.whiten.weight.requires_grad_(False)
        cast(Tensor, self.whiten.bias).data.zero_()
        self.groups = nn.Sequential(
            *(
                SpeedGroup(inside, outside, depth)
                for inside, outside in zip((24, *widths[:2]), widths, strict=True)
            )
        )
        self.head = nn.Linear(widths[2], classes, bias=False)
        self.head.weight.data.div_(self.head.weight.data.std())
        self.scale = 1 / widths[2]

    @torch.no_grad()
    def init_whitening(self, images: Tensor) -> None:
        """Set the first convolution to the eigenvectors of the 2×2 patches' covariance, scaled to
        deviation 1, and their negatives."""
        x = self.normalise(images)
        patches = (
            x.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).float()
        )
        covariance = patches.T @ patches / len(patches)
        values, vectors = torch.linalg.eigh(covariance.double().cpu())
        scaled = (vectors.T.flip(0) / (values.flip(0)[:, None] + WHITENING_EPS).sqrt()).reshape(
            12, 3, 2, 2
        )
        self.whiten.weight.copy_(torch.cat((scaled, -scaled)))

    def forward(self, images: Tensor) -> Tensor:
        x = F.gelu(self.whiten(self.normalise(images)))
        x = self.groups(x)
        return cast(Tensor, self.head(F.adaptive_max_pool2d(x, 1).flatten(1)) * self.scale)
