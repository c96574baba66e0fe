"""Optimizers: Adam, with a rate for each layer, and Muon with Nesterov SGD for the speed
recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from trainer.config import TrainConfig, effective_batch
from trainer.networks import SpeedCNN, layers_of
from trainer.schedule import rate_factor

PORTIONS = 8
"""Rates by layer change in so many steps: an optimizer works group by group."""


def make_optimizer(
    network: nn.Module, config: TrainConfig, peak: float, devices: int = 1
) -> torch.optim.Optimizer:
    """Every group has its peak learning rate as `lr`; the schedule lowers it."""
    if config.optimizer == "muon":
        assert isinstance(network, SpeedCNN)
        return MuonWithSGD(network, config, peak, effective_batch(config, devices))
    kind: Any = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    optimizer: torch.optim.Optimizer = kind(
        layer_groups(network, config, peak),
        lr=peak,
        amsgrad=config.amsgrad,
        weight_decay=config.weight_decay,
        fused=all(p.device.type == "cuda" for p in network.parameters()),
    )
    return optimizer


def layer_groups(network: nn.Module, config: TrainConfig, peak: float) -> list[dict[str, Any]]:
    """Discriminative rates (Howard & Ruder 2018, arXiv 1801.06146), from lowest_rate of the peak in
    the first layers to the peak in the last one, whose group comes first."""
    layers = layers_of(network)
    place = {p: number for number, layer in enumerate(layers) for p in layer.parameters(False)}
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for p, number in place.items():
        if p.requires_grad:
            portion = PORTIONS * number // max(1, len(layers) - 1)
            portion = portion if config.lowest_rate < 1 else PORTIONS
            decays = config.optimizer == "adam" or p.dim() > 1
            groups.setdefault((portion, decays), []).append(p)
    return [
        {
            "params": ps,
            "weight_decay": config.weight_decay * decays,
            "lr": peak * config.lowest_rate ** (1 - n / PORTIONS),
        }
        for (n, decays), ps in reversed(groups.items())
    ]


def make_scheduler(
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epochs_and_steps: Callable[[], tuple[int, float]],
) -> LambdaLR:
    """The recipe's schedule, a function of the step alone. Of groups with `epochs` > 0 the rate
    falls linearly to zero within so many epochs, whatever the schedule."""

    def factor(own_epochs: int) -> Callable[[int], float]:
        def at(step: int) -> float:
            epochs, steps = epochs_and_steps()
            if own_epochs:
                return max(0.0, 1 - step / steps / own_epochs)
            return rate_factor(config, step / steps, epochs)

        return at

    return LambdaLR(optimizer, [factor(group.get("epochs", 0)) for group in optimizer.param_groups])


class MuonWithSGD(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for convolutions, whose filters keep their norm; Nesterov SGD for
    biases and head.

    The recipes' rates are for the loss summed over the batch of `images`, as in airbench; the
    gradients are those of its mean. What Muon makes of them is the same.
    """

    def __init__(self, network: SpeedCNN, config: TrainConfig, peak: float, images: int) -> None:
        filters = [
            p for group in network.groups for name, p in group.named_parameters() if p.dim() == 4
        ]
        biases = [p for p in network.groups.parameters() if p.dim() == 1 and p.requires_grad]
        whiten = network.whiten.bias
        assert whiten is not None
        sgd: dict[str, Any] = {
            "kind": "sgd",
            "momentum": config.momentum,
            "epochs": 0,
            "images": images,
        }
        groups: list[dict[str, Any]] = [
            {
                "params": filters,
                "kind": "muon",
                "lr": peak,
                "momentum": config.muon_momentum,
                "decay": 0.0,
                "epochs": 0,
            },
            sgd | {"params": biases, "lr": config.bias_learning_rate},
            sgd | {"params": [network.head.weight], "lr": config.head_learning_rate},
            sgd
            | {
                "params": [whiten],
                "lr": config.bias_learning_rate,
                "epochs": config.whiten_bias_epochs,
            },
        ]
        for group in groups:
            # The decay per step is given for the peak, as in airbench.
            group.setdefault("decay", config.weight_decay / group["lr"] if group["lr"] else 0.0)
        super().__init__(groups, {"lr": peak})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["kind"] == "muon" else self._sgd)(params, group)
        return loss

    def _momentum(self, params: list[Tensor], grads: list[Tensor], momentum: float) -> list[Tensor]:
        """Nesterov: the gradients with the momentum added as it will be."""
        buffers = []
        for p, grad in zip(params, grads, strict=True):
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(grad)
            buffers.append(state["momentum"])
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        return list(torch._foreach_add(grads, buffers, alpha=momentum))

    def _sgd(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        grads = list(torch._foreach_mul(grads, float(group["images"])))
        if group["decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=group["decay"]))
        torch._foreach_add_(
            params, self._momentum(params, grads, group["momentum"]), alpha=-group["lr"]
        )

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = self._momentum(
            params, [p.grad for p in params if p.grad is not None], group["momentum"]
        )
        for p, update in zip(params, grads, strict=True):
            p.mul_(len(p) ** 0.5 / p.norm())
            p.add_(orthogonalised(update.reshape(len(p), -1)).view_as(p), alpha=-group["lr"])


def orthogonalised(matrix: Tensor, steps: int = 3) -> Tensor:
    """Newton–Schulz steps towards the nearest matrix with singular values of 1 (quintic
    coefficients of Jordan et al. 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix.bfloat16() if matrix.is_cuda else matrix
    x = x / (x.norm() + 1e-7)
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.T if tall else x
    return result.to(matrix.dtype)


def parameter_count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)
