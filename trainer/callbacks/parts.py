"""Parts of a batch, and what belongs to training with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


def examples_in(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return next(len(part) for part in parts if isinstance(part, Tensor))


def part_of(batch: Any, whole: int, first: int, end: int) -> Any:
    """The examples from `first` to `end` of all tensors with `whole` of them."""
    if isinstance(batch, Tensor):
        return batch[first:end] if batch.dim() and len(batch) == whole else batch
    if isinstance(batch, Mapping):
        return {name: part_of(part, whole, first, end) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(part_of(part, whole, first, end) for part in batch)
    return batch


def average_gradients(module: torch.nn.Module, processes: int) -> None:
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    for work in [torch.distributed.all_reduce(grad, async_op=True) for grad in gradients]:
        work.wait()
    torch._foreach_div_(gradients, processes)


def set_momentum(network: torch.nn.Module, parts: int) -> None:
    """Batch norm's running statistics see every part: together the parts of a step move them as one
    batch would."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.momentum:
            whole = module.__dict__.setdefault("whole_momentum", module.momentum)
            module.momentum = 1 - (1 - whole) ** (1 / parts)


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU, or on the CPU, where torch raises a plain RuntimeError."""
    return isinstance(
        error, (MemoryError, torch.cuda.OutOfMemoryError)
    ) or "can't allocate memory" in str(error)
