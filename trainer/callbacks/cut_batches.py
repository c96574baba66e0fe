"""Cuts batches into parts where the memory does not suffice for the whole."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from trainer.callbacks.steps_in_parts import STEPS_APART, StepsInParts

CPU_PART_IMAGES = 125


class CutBatches(pl.Callback):
    """`training_step` and its backward run part by part, and the gradients are those of the whole
    batch. When memory runs out, the step is done again in twice as many parts, which stay.

    For modules whose `training_step` gives the mean loss of a batch, which is a tensor or several
    whose first dimension is the examples'; not together with Trainer(accumulate_grad_batches).
    `at_least` so many parts; `part_images`: at most so many examples in each, 0: all, or on a CPU
    what fits its cache.

    Several processes must find out together that one lacks memory: for the first steps with a
    number of parts they compute apart, agree, and only then exchange their gradients. Memory that
    suffices for those suffices for all.
    """

    def __init__(self, part_images: int = 0, at_least: int = 1) -> None:
        self.part_images, self.at_least = part_images, at_least
        # After memory ran out; 0: as the arguments say.
        self.parts = 0
        self.steps_apart = STEPS_APART
        self.run: StepsInParts | None = None

    def state_dict(self) -> dict[str, int]:
        return {"parts": self.parts}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.parts = state_dict["parts"]

    def parts_of(self, examples: int, device: torch.device) -> int:
        """Into so many parts a batch is cut.

        On a CPU the activations of a large batch pass through main memory again and again: parts of
        125 images took less than half the time of 2,000 at once (two cores, `fast`).
        """
        large = device.type == "cpu" and examples > 2 * CPU_PART_IMAGES
        size = self.part_images or (CPU_PART_IMAGES if large else examples)
        return self.parts or max(self.at_least, -(-examples // size))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.run = StepsInParts(self, trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.run:
            self.run.begin(batch)

    def on_train_batch_end(self, *rest: Any) -> None:
        if self.run:
            self.run.context.close()

    def on_train_end(self, *rest: Any) -> None:
        if self.run:
            self.run.put_back()
        self.run = None

    def on_exception(self, *rest: Any) -> None:
        self.on_train_end()
