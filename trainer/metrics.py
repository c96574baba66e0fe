"""What is counted while a network trains or is evaluated, as a torchmetrics metric."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Tally(Metric):
    """Mean loss and accuracy of the images so far. Kept in one small tensor on the device, so that
    no step waits for a GPU, and in checkpoints, so that an epoch goes on where it was cut.

    Images with soft targets (mixup) count for the loss alone.
    """

    full_state_update = False
    sums: Tensor
    """float64 [loss, images, right ones, images that were evaluated]."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.zeros(4, dtype=torch.float64)
        self.add_state("sums", start, dist_reduce_fx="sum", persistent=True)

    def update(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """loss: the mean over these images."""
        soft, images = targets.is_floating_point(), len(logits)
        right = loss.new_zeros(()) if soft else (logits.argmax(1) == targets).sum()
        counted = (loss.detach() * images, images, right, 0 if soft else images)
        self.sums += torch.stack([self.as_double(value) for value in counted])

    def as_double(self, value: Tensor | int) -> Tensor:
        if isinstance(value, Tensor):
            return value.double()
        # Filled on the device: a number copied there would wait for all that the GPU has to do.
        return torch.full((), value, dtype=torch.float64, device=self.sums.device)

    def compute(self) -> dict[str, float | None]:
        """Of all processes."""
        return self.local()

    def local(self) -> dict[str, float | None]:
        """Of this process."""
        loss, images, right, evaluated = self.sums.tolist()
        return {
            "loss": loss / images if images else None,
            "accuracy": right / evaluated if evaluated else None,
        }
