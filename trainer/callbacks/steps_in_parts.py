"""The steps of one `fit`, part by part, and again in smaller parts where memory ran out."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

from trainer.callbacks.parts import (
    average_gradients,
    examples_in,
    is_out_of_memory,
    part_of,
    set_momentum,
)

STEPS_APART = 3


class Parts(Protocol):
    """Into how many parts a batch is cut, and for how many steps several processes compute
    apart."""

    parts: int
    steps_apart: int

    def parts_of(self, examples: int, device: torch.device) -> int: ...


class StepsInParts:
    """Of one `fit`: stands in for the module's training_step and backward."""

    def __init__(self, asked: Parts, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.asked, self.trainer, self.module = asked, trainer, module
        self.step, self.backward = module.training_step, module.backward
        stand_in: Any = module
        stand_in.training_step, stand_in.backward = self.first_part, self.all_parts
        self.metrics = [part for part in module.modules() if isinstance(part, Metric)]
        self.lacking: BaseException | None = None
        self.apart = False
        self.context = contextlib.ExitStack()

    def put_back(self) -> None:
        self.context.close()
        del self.module.training_step, self.module.backward
        set_momentum(self.module, 1)

    def begin(self, batch: Any) -> None:
        self.batch, self.whole = batch, examples_in(batch)
        self.counted = [
            {name: copy.deepcopy(value) for name, value in metric.metric_state.items()}
            for metric in self.metrics
        ]
        self.cut()
        several, wrapped = self.trainer.world_size > 1, self.trainer.strategy.model
        self.apart = several and (self.parts > 1 or self.asked.steps_apart > 0)
        if self.apart and isinstance(wrapped, DistributedDataParallel):
            self.context.enter_context(wrapped.no_sync())
            # Else it leaves batch norm's statistics of the processes to themselves.
            self.context.callback(setattr, wrapped, "require_forward_param_sync", True)

    def cut(self) -> None:
        self.parts = self.asked.parts_of(self.whole, self.module.device)
        size = -(-self.whole // self.parts)
        self.cuts = [(n, min(n + size, self.whole)) for n in range(0, self.whole, size)]
        set_momentum(self.module, self.parts)

    def first_part(self, batch: Any, *rest: Any) -> Any:
        """In place of training_step."""
        self.rest = rest
        nothing = torch.zeros((), requires_grad=True, device=self.module.device)
        return self.attempt(lambda: self.forward(*self.cuts[0]), nothing)

    def all_parts(self, loss: Tensor, *rest: Any, **named: Any) -> None:
        """In place of backward: of the first part's loss, and of all parts that follow."""

        def following(first: int) -> None:
            for bounds in self.cuts[first:]:
                plugin = self.trainer.precision_plugin
                with plugin.train_step_context():
                    output = self.forward(*bounds)
                output = output["loss"] if isinstance(output, Mapping) else output
                self.backward(plugin.pre_backward(output, self.module))

        def all_of_them() -> None:
            self.backward(loss, *rest, **named)
            following(1)

        if self.lacking is None:
            self.attempt(all_of_them)
        if self.lacking is not None:
            loss.detach_()  # Lightning holds it, and with it the graph of what was tried
        while self.any_lacks():
            self.cut_smaller()
            self.attempt(lambda: following(0))
        if self.apart:
            average_gradients(self.module, self.trainer.world_size)
            self.asked.steps_apart -= 1

    def forward(self, first: int, end: int) -> Any:
        """The module's own training_step with a part, its loss weighed by the part's share."""
        output: Any = self.step(part_of(self.batch, self.whole, first, end), *self.rest)
        share = (end - first) / self.whole
        if isinstance(output, Mapping):
            return {**output, "loss": output["loss"] * share}
        return output * share if share < 1 else output

    def attempt(self, work: Callable[[], Any], otherwise: Any = None) -> Any:
        """Lack of memory is kept in `lacking`."""
        self.lacking = None
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or (self.trainer.world_size > 1 and not self.apart):
                raise
            # Without its frames, which hold what is to be freed.
            self.lacking = error.with_traceback(None)
            return otherwise

    def any_lacks(self) -> bool:
        if not self.apart:
            return self.lacking is not None
        flag = torch.tensor(float(self.lacking is not None), device=self.module.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def cut_smaller(self) -> None:
        before, whole = self.parts, self.whole
        if before >= whole or self.trainer.accumulate_grad_batches > 1:
            raise self.lacking or torch.cuda.OutOfMemoryError("another process lacks memory")
        self.module.zero_grad(set_to_none=True)
        for metric, counted in zip(self.metrics, self.counted, strict=True):
            for name, value in counted.items():
                setattr(metric, name, copy.deepcopy(value))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.asked.parts, self.asked.steps_apart = min(whole, 2 * before), STEPS_APART
        self.cut()
        self.module.print(
            f"out of memory: batches of {-(-whole // before)} images are cut to"
            f" {-(-whole // self.parts)}, accumulated {self.parts} times; the effective"
            f" batch stays {whole * self.trainer.world_size}"
        )
