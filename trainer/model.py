"""The LightningModule: one optimizer step per call, its learning rate from the step alone, its
state in one place."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import TrainConfig, effective_batch, from_dict, peak_learning_rate
from trainer.data.augment import mixup_draw
from trainer.data.images import balanced_weights
from trainer.networks import SpeedCNN, make_network
from trainer.optimizers import make_optimizer, set_rates
from trainer.schedule import rate_factor, resolution

if TYPE_CHECKING:
    from trainer.data.data_module import ImageDataModule

WHITENING_IMAGES = 5000
CPU_PART_IMAGES = 125
STEPS_APART = 3


@dataclass
class TrainingState:
    """Where a training stands: with weights and optimizer, all that it takes to go on as if it had
    not been stopped."""

    epoch: int = 0
    # Batches of this epoch that are done.
    batch: int = 0
    step: int = 0
    # Halved after each divergence.
    rate_scale: float = 1.0
    restores: int = 0
    # Into so many parts a process's share of the effective batch is cut, after memory ran out; 0:
    # as the recipe says.
    parts: int = 0
    # On the training clock: whitening, training and validation; and what it showed when this epoch
    # began.
    seconds: float = 0.0
    epoch_began: float = 0.0
    # Over all processes, as `batch` and `step` count them.
    images_per_step: int = 0
    # One row per epoch.
    history: list[dict[str, Any]] = field(default_factory=list)
    # Of the epoch so far: loss, images, right ones, and those that were counted for it.
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)

    def fit_to(self, images_per_step: int, steps_per_epoch: int) -> None:
        """Another batch size or number of devices than before the stop: go on from the same share
        of the epoch."""
        if self.images_per_step not in (0, images_per_step):
            self.batch = min(steps_per_epoch, self.batch * self.images_per_step // images_per_step)
            self.step = self.epoch * steps_per_epoch + self.batch
        self.images_per_step = images_per_step


class Classifier(pl.LightningModule):
    """`config` and `classes` are plain values, so that checkpoints load with weights_only."""

    def __init__(self, config: Mapping[str, Any], classes: Sequence[str]) -> None:
        super().__init__()
        self.save_hyperparameters({"config": dict(config), "classes": list(classes)})
        self.automatic_optimization = False
        self.config: TrainConfig = from_dict(config)
        self.classes = tuple(classes)
        self.network = make_network(self.config, len(self.classes))
        if self.config.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.state = TrainingState()
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.optimizer_state: dict[str, Any] | None = None
        self.steps_apart = STEPS_APART
        # Of the loss, by class; None: all alike.
        self.class_weights: Tensor | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(
            self.network, self.config, peak_learning_rate(self.config, self.trainer.world_size)
        )

    def prepare(self) -> None:
        """At the start of a fit, on the device: whitening for a new training, the optimizer's state
        for one that goes on."""
        self.sums = torch.tensor(self.state.sums, dtype=torch.float64, device=self.device)
        if self.config.class_weights == "balanced":
            labels = self.data_module.train_images.labels
            self.class_weights = balanced_weights(labels, len(self.classes)).to(self.device)
        if self.optimizer_state is not None:
            self.raw_optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        elif isinstance(self.network, SpeedCNN) and not self.state.step:
            images = self.data_module.sample_images(WHITENING_IMAGES)
            self.network.init_whitening(images.to(self.device))

    @property
    def data_module(self) -> ImageDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined,no-any-return]

    @property
    def raw_optimizer(self) -> torch.optim.Optimizer:
        return self.trainer.optimizers[0]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        state, steps = self.state, self.data_module.steps_per_epoch
        factor = rate_factor(self.config, state.step, steps) * state.rate_scale
        set_rates(self.raw_optimizer, factor, state.step / steps)
        mixed = mixup_draw(len(labels), self.config, state.epoch, state.batch)
        self.backward_in_parts(images, labels, mixed)
        optimizer = self.optimizers()
        assert isinstance(optimizer, pl.core.optimizer.LightningOptimizer)
        if self.config.gradient_clip_val:
            self.clip_gradients(optimizer.optimizer, self.config.gradient_clip_val, "norm")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.batch += 1
        state.step += 1

    def backward_in_parts(
        self, images: Tensor, labels: Tensor, mixed: tuple[float, Tensor] | None
    ) -> None:
        """Gradients of the whole batch. Where the memory does not suffice, it is tried again in
        twice as many, smaller parts.

        Several processes must find that out together: for the first steps with a number of parts
        they compute apart, agree, and only then exchange their gradients. Memory that suffices for
        those suffices for all.
        """
        before = self.sums.clone()
        world = self.trainer.world_size
        while True:
            parts = self.state.parts or first_parts(self.config, len(labels), self.device)
            set_momentum(self.network, parts)
            apart = world > 1 and self.steps_apart > 0
            lacking: BaseException | None = None
            try:
                self._backward(images, labels, mixed, parts, apart)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or (world > 1 and not apart):
                    raise
                lacking = error
            if not (self._any_process(lacking is not None) if apart else lacking):
                if apart:
                    self._average_gradients()
                    self.steps_apart -= 1
                return
            if parts >= len(labels):
                raise lacking or torch.cuda.OutOfMemoryError(
                    "another process of this training is out of memory"
                )
            del lacking
            self.network.zero_grad(set_to_none=True)
            self.sums.copy_(before)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.state.parts = min(len(labels), 2 * parts)
            self.steps_apart = STEPS_APART
            self.print(
                f"out of memory: batches of {-(-len(labels) // parts)} images are cut to"
                f" {-(-len(labels) // self.state.parts)}, accumulated {self.state.parts} times; the"
                f" effective batch stays {effective_batch(self.config, world)}"
            )

    def _any_process(self, mine: bool) -> bool:
        flag = torch.tensor(float(mine), device=self.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def _average_gradients(self) -> None:
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.trainer.world_size

    def _backward(
        self,
        images: Tensor,
        labels: Tensor,
        mixed: tuple[float, Tensor] | None,
        parts: int,
        apart: bool,
    ) -> None:
        partners = None
        if mixed is not None:
            share, places = mixed[0], mixed[1].to(labels.device)
            # On the uint8 pixels' scale; the network normalises, which is linear.
            images = share * images.float() + (1 - share) * images[places].float()
            partners = (share, labels[places])
        whole = len(labels)
        size = -(-whole // parts)
        pixels = resolution(self.config, self.state.step, self.data_module.steps_per_epoch)
        for first in range(0, whole, size):
            some = slice(first, first + size)
            last = first + size >= whole
            with contextlib.nullcontext() if last and not apart else self._without_sync():
                logits = self.network(
                    resized(images[some].contiguous(memory_format=torch.channels_last), pixels)
                )
                loss = self.loss(
                    logits, labels[some], partners and (partners[0], partners[1][some])
                )
                # Muon's learning rates are for the sum over the whole batch, and several processes
                # average their gradients.
                self.manual_backward(
                    loss * self.trainer.world_size
                    if self.config.optimizer == "muon"
                    else loss / whole
                )
            with torch.no_grad():
                right = (
                    (logits.argmax(1) == labels[some]).sum()
                    if mixed is None
                    else torch.zeros((), device=loss.device)
                )
                counted = len(logits) if mixed is None else 0
                self.sums += torch.stack(
                    [
                        loss.detach().double(),
                        _double(len(logits), loss),
                        right.double(),
                        _double(counted, loss),
                    ]
                )

    def _without_sync(self) -> contextlib.AbstractContextManager[None]:
        """Several processes exchange their gradients once per step, with the last part."""
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel):
            return wrapped.no_sync()
        return contextlib.nullcontext()

    def loss(self, logits: Tensor, labels: Tensor, partners: tuple[float, Tensor] | None) -> Tensor:
        """Cross-entropy summed over the images; mixup (Zhang et al. 2018, arXiv 1710.09412) weighs
        both labels."""
        smoothing, weight = self.config.label_smoothing, self.class_weights
        first = F.cross_entropy(
            logits.float(), labels, weight, label_smoothing=smoothing, reduction="sum"
        )
        if partners is None:
            return first
        share, others = partners
        return share * first + (1 - share) * F.cross_entropy(
            logits.float(), others, weight, label_smoothing=smoothing, reduction="sum"
        )

    def checkpoint(self) -> dict[str, Any]:
        """In Lightning's form (`Classifier.load_from_checkpoint` reads it), with the state that a
        resumed training needs."""
        self.state.sums = self.sums.tolist()
        return {
            "state_dict": {
                f"network.{name}": value for name, value in self.network.state_dict().items()
            },
            "hyper_parameters": dict(self.hparams),
            "pytorch-lightning_version": version("pytorch-lightning"),
            "epoch": self.state.epoch,
            "global_step": self.state.step,
            "optimizer_states": [self.raw_optimizer.state_dict()],
            "training": copy.deepcopy(dataclasses.asdict(self.state)),
        }

    def is_sound(self) -> bool:
        """No weight is infinite or not a number."""
        return all(bool(torch.isfinite(p).all()) for p in self.network.parameters())

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Weights and state now, the optimizer's when the training starts."""
        self.load_state_dict(checkpoint["state_dict"])
        known = {item.name for item in dataclasses.fields(TrainingState)}
        self.state = TrainingState(
            **{name: value for name, value in checkpoint["training"].items() if name in known}
        )
        self.optimizer_state = checkpoint["optimizer_states"][0]


def first_parts(config: TrainConfig, images: int, device: torch.device) -> int:
    """Into how many parts a process's share of a step is cut, before memory has anything to say.

    On a CPU the activations of a large batch pass through main memory again and again: parts of 125
    images took less than half the time of 2,000 at once (two cores, `fast`).
    """
    large = device.type == "cpu" and images > 2 * CPU_PART_IMAGES
    size = config.part_images or (CPU_PART_IMAGES if large else images)
    return max(config.accumulate_grad_batches, -(-images // size))


def set_momentum(network: torch.nn.Module, parts: int) -> None:
    """Batch norm's running statistics see every part: together the parts of a step move them as one
    batch would."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.momentum is not None:
            whole = module.__dict__.setdefault("whole_momentum", module.momentum)
            module.momentum = 1 - (1 - whole) ** (1 / parts)


def resized(images: Tensor, pixels: int) -> Tensor:
    if images.shape[-1] == pixels:
        return images
    return F.interpolate(images.float(), size=(pixels, pixels), mode="bilinear", antialias=True)


def _double(number: int, like: Tensor) -> Tensor:
    return torch.full((), float(number), dtype=torch.float64, device=like.device)


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU, or on the CPU, where torch raises a plain RuntimeError."""
    return isinstance(
        error, (MemoryError, torch.cuda.OutOfMemoryError)
    ) or "can't allocate memory" in str(error)
