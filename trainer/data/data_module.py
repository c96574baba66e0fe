"""Images ready for training: the validation split, and two loaders behind one interface."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainer.config import TrainConfig
from trainer.data.archive import DataError
from trainer.data.augment import augment, epoch_order
from trainer.data.sources import Arrays, ImageData

BLOCK_BATCHES = 16
"""The device's loader augments so many batches in one go: a GPU takes one large operation sooner
than many small ones."""
SPLIT_SEED = 0
"""The validation images are the same for every seed of a training."""
Batch = tuple[Tensor, Tensor]
"""uint8 [B, 3, 32, 32] and int64 [B]."""


class ImageDataModule(pl.LightningDataModule):
    """Splits the images, and gives one loader per epoch, from any batch of it on."""

    def __init__(self, data: ImageData, config: TrainConfig) -> None:
        super().__init__()
        self.data = data
        self.config = config
        train, validation = split_indices(data.train.labels, config)
        self.train_images = data.train.take(train)
        self.validation = data.train.take(validation) if len(validation) else None
        # Of one optimizer step in one process.
        self.share = config.batch_size * config.accumulate_grad_batches
        self.rank, self.world = 0, 1
        self.device = torch.device("cpu")
        self._loader: DeviceLoader | WorkerLoader | None = None

    def setup(self, stage: str) -> None:
        """Called by the Trainer once it knows device and processes."""
        assert self.trainer is not None
        self.rank, self.world = self.trainer.global_rank, self.trainer.world_size
        self.device = self.trainer.strategy.root_device

    def train_dataloader(self) -> EpochBatches:
        """Asked for at the beginning of every epoch; the model knows where the training stands."""
        assert self.trainer is not None
        model: Any = self.trainer.lightning_module
        return self.epoch_loader(model.state.epoch, model.state.batch)

    @property
    def loader_kind(self) -> str:
        return choose_loader(self.config, self.device, self.train_images)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; the images left over differ from epoch to epoch."""
        return self.steps_for(self.world)

    def steps_for(self, world: int) -> int:
        return max(1, len(self.train_images) // (self.share * world))

    def epoch_indices(self, epoch: int, batch: int) -> Tensor:
        """The images of one step in this process, as places in train_images."""
        return step_indices(
            len(self.train_images), self.config, epoch, batch, self.rank, self.world
        )

    def load(self) -> DeviceLoader | WorkerLoader:
        """The loader, made at its first use."""
        if self._loader is None:
            kind = DeviceLoader if self.loader_kind == "device" else WorkerLoader
            self._loader = kind(self)
        return self._loader

    def epoch_loader(self, epoch: int, start: int = 0) -> EpochBatches:
        return EpochBatches(self.load(), epoch, start, self.steps_per_epoch)


class EpochBatches:
    """One epoch's batches from `start` on."""

    def __init__(
        self, loader: DeviceLoader | WorkerLoader, epoch: int, start: int, steps: int
    ) -> None:
        self.loader = loader
        self.epoch = epoch
        self.start = start
        self.steps = steps

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[Batch]:
        return self.loader.batches(self.epoch, self.start)


def step_indices(
    count: int, config: TrainConfig, epoch: int, batch: int, rank: int, world: int
) -> Tensor:
    """Every `world`-th image of the step's effective batch: together the processes take what one
    alone would."""
    size = config.batch_size * config.accumulate_grad_batches * world
    return epoch_order(count, config.seed, epoch)[batch * size : (batch + 1) * size][rank::world]


def split_indices(labels: Tensor, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Training and validation, both with each class in its share; at most validation_max. Sorted,
    and the same for every seed."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(labels), generator=generator)
    classes = [order[labels[order] == label] for label in range(int(labels.max()) + 1)]
    wanted = min(round(config.validation_fraction * len(labels)), config.validation_max)
    held = (
        deal_out(wanted, [len(part) for part in classes])
        if config.validation_fraction
        else [0] * len(classes)
    )
    validation = (
        torch.cat([part[:count] for part, count in zip(classes, held, strict=True)]).sort().values
    )
    rest = [part[count:] for part, count in zip(classes, held, strict=True)]
    if config.train_images:
        kept = config.train_images / len(labels)
        rest = [
            part[: max(1, round((len(part) + count) * kept))]
            for part, count in zip(rest, held, strict=True)
        ]
    train = torch.cat(rest).sort().values
    if config.validation_fraction and not len(validation):
        raise DataError(
            "no image is left for validation: add images, or set validation_fraction 0 and"
            " patience 0"
        )
    return train, validation


def deal_out(wanted: int, counts: list[int]) -> list[int]:
    """`wanted` images in the classes' proportion: of each class of two or more at least one, and
    never its last."""
    share = wanted / max(1, sum(counts))
    held = [min(count - 1, max(1, int(count * share))) if count else 0 for count in counts]
    # What rounding down has left over goes where most is missing; what the ones above have taken
    # too much, where most is held.
    for _ in range(wanted - sum(held)):
        place = max(
            range(len(counts)),
            key=lambda i: (counts[i] * share - held[i]) if held[i] < counts[i] - 1 else -math.inf,
        )
        held[place] += held[place] < counts[place] - 1
    while sum(held) > max(wanted, sum(count > 1 for count in counts)):
        held[max(range(len(counts)), key=lambda i: (held[i] > 1, held[i] - counts[i] * share))] -= 1
    return held


def choose_loader(config: TrainConfig, device: torch.device, images: Arrays) -> str:
    """The device's where the images take at most a quarter of its free memory."""
    if config.loader != "auto":
        return config.loader
    if device.type != "cuda":
        # Workers would take the cores that compute.
        return "device"
    free, _ = torch.cuda.mem_get_info(device)
    return "device" if images.images.nbytes < free / 4 else "workers"


def worker_count(config: TrainConfig) -> int:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(config.num_workers, cores)


def block_size(device: torch.device) -> int:
    return BLOCK_BATCHES if device.type == "cuda" else 1


class DeviceLoader:
    """All images lie on the device, and are shuffled and augmented there."""

    def __init__(self, module: ImageDataModule) -> None:
        self.module = module
        self.images = module.train_images.images.to(module.device)
        self.labels = module.train_images.labels.to(module.device)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        module = self.module
        block = block_size(self.images.device)
        for first in range(start, module.steps_per_epoch, block):
            numbers = range(first, min(first + block, module.steps_per_epoch))
            parts = [module.epoch_indices(epoch, number) for number in numbers]
            indices = torch.cat(parts).to(self.images.device, non_blocking=True)
            images = augment(self.images[indices], indices, epoch, module.config)
            labels = self.labels[indices]
            first_image = 0
            for part in parts:
                some = slice(first_image, first_image + len(part))
                first_image += len(part)
                yield images[some], labels[some]


class WorkerLoader:
    """Worker processes augment whole batches; the main process only says which."""

    def __init__(self, module: ImageDataModule) -> None:
        config = module.config
        self.module = module
        self.places = _Places()
        workers = worker_count(config)
        options: dict[str, Any] = {}
        if workers:
            options = {
                "prefetch_factor": config.prefetch_factor,
                "persistent_workers": config.persistent_workers,
            }
        self.loader: DataLoader[Batch] = DataLoader(
            _Batches(module),
            batch_size=None,
            sampler=self.places,
            num_workers=workers,
            pin_memory=config.pin_memory and module.device.type == "cuda",
            **options,
        )

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        self.places.set([(epoch, batch) for batch in range(start, self.module.steps_per_epoch)])
        return iter(self.loader)


class _Places(Sampler[tuple[int, int]]):
    """Epoch and number of the batches to make."""

    def __init__(self) -> None:
        self.places: list[tuple[int, int]] = []

    def set(self, places: list[tuple[int, int]]) -> None:
        self.places = places

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class _Batches(Dataset[Batch]):
    def __init__(self, module: ImageDataModule) -> None:
        # Not the module itself: where workers are not forked, it can't be sent to them.
        self.images, self.config = module.train_images, module.config
        self.rank, self.world = module.rank, module.world

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        epoch, batch = place
        indices = step_indices(len(self.images), self.config, epoch, batch, self.rank, self.world)
        part = self.images.take(indices)
        return augment(part.images, indices, epoch, self.config), part.labels
