"""Optimizers: Adam as the document has it, and Muon with Nesterov SGD for the speed recipes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.networks import SpeedCNN


def make_optimizer(network: nn.Module, config: TrainConfig, peak: float) -> torch.optim.Optimizer:
    """Every group keeps its peak learning rate as `peak`, from which the schedule sets `lr` before
    each step."""
    trained = [p for p in network.parameters() if p.requires_grad]
    fused = all(p.device.type == "cuda" for p in trained)
    if config.optimizer == "muon":
        assert isinstance(network, SpeedCNN)
        optimizer: torch.optim.Optimizer = MuonWithSGD(network, config, peak)
    elif config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            trained, lr=peak, amsgrad=config.amsgrad, weight_decay=config.weight_decay, fused=fused
        )
    else:
        optimizer = torch.optim.Adam(
            trained, lr=peak, amsgrad=config.amsgrad, weight_decay=config.weight_decay, fused=fused
        )
    for group in optimizer.param_groups:
        group.setdefault("peak", group["lr"])
        group.setdefault("epochs", 0)
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, factor: float, progress_epochs: float) -> None:
    """`epochs` > 0: the group's rate falls linearly to zero within so many epochs, whatever the
    schedule."""
    for group in optimizer.param_groups:
        own = max(0.0, 1 - progress_epochs / group["epochs"]) if group["epochs"] else factor
        group["lr"] = group["peak"] * own


class MuonWithSGD(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for convolutions, whose filters keep their norm; Nesterov SGD for
    biases and head.

    The gradients are those of the loss summed over the batch.
    """

    def __init__(self, network: SpeedCNN, config: TrainConfig, peak: float) -> None:
        filters = [
            p for group in network.groups for name, p in group.named_parameters() if p.dim() == 4
        ]
        biases = [p for p in network.groups.parameters() if p.dim() == 1 and p.requires_grad]
        whiten = network.whiten.bias
        assert whiten is not None
        sgd: dict[str, Any] = {"kind": "sgd", "momentum": config.momentum, "epochs": 0}
        groups: list[dict[str, Any]] = [
            {
                "params": filters,
                "kind": "muon",
                "peak": peak,
                "momentum": config.muon_momentum,
                "decay": 0.0,
                "epochs": 0,
            },
            sgd | {"params": biases, "peak": config.bias_learning_rate},
            sgd | {"params": [network.head.weight], "peak": config.head_learning_rate},
            sgd
            | {
                "params": [whiten],
                "peak": config.bias_learning_rate,
                "epochs": config.whiten_bias_epochs,
            },
        ]
        for group in groups:
            group["lr"] = group["peak"]
            # The decay per step is given for the peak, as in airbench.
            group.setdefault("decay", config.weight_decay / group["peak"] if group["peak"] else 0.0)
        super().__init__(groups, {"lr": peak})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # the closure's loss is not used
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["kind"] == "muon" else self._sgd)(params, group)

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
