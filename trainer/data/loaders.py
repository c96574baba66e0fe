"""What the Trainer is given: loaders whose batches follow from epoch and number, so that a resumed
training needs no more than Lightning's own loop state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from trainer.data.workers import Batch


class EpochLoader:
    """The training's batches, an epoch per iteration. `batches(epoch, start)` gives those of one
    epoch from any of them on.

    Its position goes into Lightning's checkpoints (`state_dict`), and Lightning tells it the epoch
    as it tells any sampler. It makes nothing before the first batch is asked for: Lightning asks
    for an iterator before it knows where a resumed training stands.
    """

    batch_sampler = None

    def __init__(self, batches: Callable[[int, int], Iterator[Batch]], steps: int) -> None:
        self.batches = batches
        self.steps = steps
        self.epoch = 0
        self.sampler = self
        # Epoch, and how many of its batches are given out.
        self.place = (0, 0)
        # Where the next iteration begins, after load_state_dict.
        self.resumed = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        start = self.resumed[1] if self.resumed[0] == epoch else 0
        self.resumed = (0, 0)
        for number, batch in enumerate(self.batches(epoch, start), start + 1):
            self.place = (epoch, number)
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.place[0], "batch": self.place[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resumed = (int(state["epoch"]), int(state["batch"]))


class EvaluationLoader:
    """Every image once, in order. `batches()` gives those of this process; all processes have the
    same number of them."""

    def __init__(self, batches: Callable[[], Iterator[Batch]], count: int) -> None:
        self.batches = batches
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()
