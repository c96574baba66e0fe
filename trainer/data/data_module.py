"""Images ready for training: the validation split, and two loaders behind one interface."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from trainer.config import TrainConfig
from trainer.data.augment import augment, cut_out, epoch_order, mixed, mixup_draw, resized
from trainer.data.decode import SMALL_SIZE, cores
from trainer.data.images import Arrays, Files, ImageData
from trainer.data.loaders import EpochLoader, EvaluationLoader
from trainer.data.splits import split_indices
from trainer.data.workers import (
    Batch,
    LoaderOptions,
    as_tensors,
    evaluation_batches,
    evaluation_parts,
    make_loader,
)
from trainer.processes import say
from trainer.schedule import resolution, scaled

BLOCK_BATCHES = 16
"""The device's loader augments so many batches in one go: a GPU takes one large operation sooner
than many small ones."""


class ImageDataModule(pl.LightningDataModule):
    """Splits the images, and gives the loaders for training, validation and test."""

    def __init__(
        self, data: ImageData, config: TrainConfig, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.data = data
        self.config = config
        self.train_images, self.validation = training_and_validation(data, config)
        # Of one optimizer step in one process.
        self.share = config.batch_size * config.accumulate_grad_batches
        self.rank, self.world = 0, 1
        self.device = device or torch.device("cpu")
        self._loader: DeviceLoader | WorkerLoader | None = None

    def setup(self, stage: str) -> None:
        """Called by the Trainer once it knows device and processes."""
        assert self.trainer is not None
        self.rank, self.world = self.trainer.global_rank, self.trainer.world_size
        self.device = self.trainer.strategy.root_device

    def state_dict(self) -> dict[str, Any]:
        return {"sha256": self.data.sha256}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.trainer and self.trainer.state.fn == "fit" and state["sha256"] != self.data.sha256:
            say(
                "warning: the images are not those that this training has had: some of those that"
                " are now kept for validation and test may have been trained on"
            )

    def train_dataloader(self) -> EpochLoader:
        return EpochLoader(
            lambda epoch, start: self.load().batches(epoch, start), self.steps_per_epoch
        )

    def val_dataloader(self) -> EvaluationLoader | list[EvaluationLoader]:
        return self.evaluation_loader(self.validation) if self.validation else []

    def test_dataloader(self) -> EvaluationLoader:
        return self.evaluation_loader(self.data.test)

    def evaluation_loader(self, images: Arrays | Files) -> EvaluationLoader:
        workers, place = worker_count(self.config), (self.rank, self.world)
        return EvaluationLoader(
            lambda: evaluation_batches(images, workers, *place),
            len(evaluation_parts(images, *place)),
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """In training, what is done to a batch as a whole, on the device: mixup and the resolution
        of this step. Targets are int64 [B], of mixed batches float [B, classes]."""
        assert self.trainer is not None
        if not self.trainer.training:
            return batch
        images, labels = batch
        step = self.trainer.global_step
        epoch, number = divmod(step, self.steps_per_epoch)
        drawn = mixup_draw(len(labels), self.config, epoch, number)
        if drawn is not None:
            images, labels = mixed(images, labels, drawn, len(self.data.classes))
        return resized(images, resolution(self.config, step, self.steps_per_epoch)), labels

    def example_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One batch in every form that on_after_batch_transfer gives, on the device."""
        places = torch.arange(min(len(self.train_images), self.share))
        images = self.train_images.batch(places).to(self.device)
        labels = self.train_images.labels[places].to(self.device)
        for of_32 in dict.fromkeys(self.config.resolutions):
            pixels = scaled(of_32, self.config)
            if self.config.mixup_prob < 1:
                yield resized(images, pixels), labels
            if self.config.mixup_prob > 0:
                both = mixed(images, labels, (0.5, places), len(self.data.classes))
                yield resized(both[0], pixels), both[1]

    def sample_images(self, count: int) -> Tensor:
        """uint8 [B, 3, size, size]: training images by the seed, `count` of 32 pixels and as many
        pixels of larger ones."""
        images = self.train_images
        generator = torch.Generator().manual_seed(self.config.seed)
        chosen = torch.randperm(len(images), generator=generator)
        return images.batch(chosen[: max(1, count * 32 * 32 // images.size**2)])

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
        order = epoch_order(len(self.train_images), self.config.seed, epoch)
        return step_indices(order, self.share, batch, self.rank, self.world)

    def load(self) -> DeviceLoader | WorkerLoader:
        """The loader, made at its first use."""
        if self._loader is None:
            kind = DeviceLoader if self.loader_kind == "device" else WorkerLoader
            self._loader = kind(self)
        return self._loader


def step_indices(order: Tensor, share: int, batch: int, rank: int, world: int) -> Tensor:
    """Every `world`-th image of the step's effective batch: together the processes take what one
    alone would. `order`: the epoch's; `share`: images of a step in one process."""
    size = share * world
    return order[batch * size : (batch + 1) * size][rank::world]


def training_and_validation(
    data: ImageData, config: TrainConfig
) -> tuple[Arrays | Files, Arrays | Files | None]:
    """The set's own validation images where it has some, else a part of the training's."""
    if data.validation is not None:
        config = dataclasses.replace(config, validation_fraction=0.0)
    train, validation = split_indices(data.train.labels, config)
    images = data.train.take(train)
    if data.validation is not None:
        return images, data.validation
    return images, data.train.take(validation) if len(validation) else None


def choose_loader(config: TrainConfig, device: torch.device, images: Arrays | Files) -> str:
    """The device's where the images take at most a quarter of its free memory."""
    if isinstance(images, Files):
        return "workers"
    if config.loader != "auto":
        return config.loader
    if device.type != "cuda":
        # Workers would take the cores that compute.
        return "device"
    free, _ = torch.cuda.mem_get_info(device)
    return "device" if images.images.nbytes < free / 4 else "workers"


def worker_count(config: TrainConfig) -> int:
    return min(config.num_workers, cores())


def block_size(device: torch.device) -> int:
    return BLOCK_BATCHES if device.type == "cuda" else 1


class DeviceLoader:
    """All images lie on the device, and are shuffled and augmented there."""

    def __init__(self, module: ImageDataModule) -> None:
        assert isinstance(module.train_images, Arrays)
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
    """Worker processes make whole batches; the main process only says which."""

    def __init__(self, module: ImageDataModule) -> None:
        self.module = module
        self.places = _Places()
        images = module.train_images
        self.loader = make_loader(
            _Batches(module),
            self.places,
            LoaderOptions(
                workers=worker_count(module.config),
                batch_bytes=module.share * 3 * images.size**2,
                prefetch_factor=module.config.prefetch_factor,
                persistent=module.config.persistent_workers,
                pin_memory=module.config.pin_memory and module.device.type == "cuda",
            ),
        )

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        self.places.set([(epoch, batch) for batch in range(start, self.module.steps_per_epoch)])
        return as_tensors(self.loader)


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
        self.share, self.rank, self.world = module.share, module.rank, module.world

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        epoch, batch = place
        order = epoch_order(len(self.images), self.config.seed, epoch)
        indices = step_indices(order, self.share, batch, self.rank, self.world)
        images = training_images(self.images, indices, epoch, self.config)
        return images, self.images.labels[indices]


def training_images(
    images: Arrays | Files, indices: Tensor, epoch: int, config: TrainConfig
) -> Tensor:
    """Augmented: uint8 [B, 3, size, size]."""
    if isinstance(images, Arrays):
        return augment(images.images[indices], indices, epoch, config)
    # A random part of the image stands in for a shift.
    crops = images.crops(indices, epoch, config)
    if not config.cutout:
        return crops
    side = config.cutout * images.size // SMALL_SIZE
    return cut_out(crops, indices, epoch, dataclasses.replace(config, cutout=side))
