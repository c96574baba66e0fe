"""Compilation before the training clock starts: torch.compile works at the first use of each form
of input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from trainer.callbacks.cut_batches import CutBatches
from trainer.callbacks.parts import examples_in, is_out_of_memory, part_of
from trainer.processes import say


class CompileFirst(pl.Callback):
    """Compiles `network` of the module, or the module where it has none, and uses it once in every
    form that the training will give it; weights and statistics stay as they are.

    `required`: where compilation fails, so does the training; else it goes on without. It needs a C
    compiler, which many images lack. `examples`: batches in all forms; default: one of the
    training's loader. `cut`: what cuts the batches.
    """

    def __init__(
        self,
        required: bool = False,
        examples: Callable[[], Iterable[Any]] | None = None,
        cut: CutBatches | None = None,
    ) -> None:
        self.required, self.examples, self.cut = required, examples, cut

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network: Any = getattr(pl_module, "network", pl_module)
        network.compile()
        try:
            self.use_once(trainer, pl_module)
        except Exception as error:  # of a compiler's parts and the driver: they have no common kind
            if is_out_of_memory(error):
                return  # the training meets it again, and halves its parts
            if self.required:
                raise
            network._compiled_call_impl = None
            say(
                "torch.compile does not work here, going on without it:"
                f" {' '.join(str(error).split())[:200]}"
            )
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A test has forms of its own, and is too short to compile for.
        getattr(pl_module, "network", pl_module)._compiled_call_impl = None

    def use_once(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        loader: Any = trainer.train_dataloader
        examples = self.examples() if self.examples else [next(iter(loader))]
        for batch in examples:
            whole = examples_in(batch)
            parts = self.cut.parts_of(whole, pl_module.device) if self.cut else 1
            images = part_of(batch, whole, 0, -(-whole // parts))[0]
            with trainer.precision_plugin.train_step_context():
                loss: Tensor = pl_module(images.to(pl_module.device)).float().sum()
            # Not backward(): it would leave gradients, and several processes would exchange them.
            torch.autograd.grad(loss, trained)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
