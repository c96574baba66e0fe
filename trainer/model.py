"""The LightningModule: a network, its loss, its optimizer and its metrics. It works alone in any
Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.callbacks.find_divergence import FindDivergence
from trainer.config import TrainConfig, from_dict, peak_learning_rate
from trainer.data.images import balanced_weights
from trainer.evaluate import averaged_logits
from trainer.metrics import Tally
from trainer.networks import SpeedCNN, layers_of, load_pretrained, make_network
from trainer.optimizers import make_optimizer, make_scheduler
from trainer.scores import Answers, Evaluation

WHITENING_IMAGES = 5000
Batch = tuple[Tensor, Tensor]
"""Images [B, 3, H, W], uint8 or float from 0 to 255, and targets: int64 [B], or of mixed images
float [B, classes]."""


class Classifier(pl.LightningModule):
    """`config` and `classes` are plain values, so that checkpoints load with weights_only."""

    def __init__(self, config: Mapping[str, Any], classes: Sequence[str]) -> None:
        super().__init__()
        # Not to the logger: the paths of a machine are nobody else's business.
        self.save_hyperparameters({"config": dict(config), "classes": list(classes)}, logger=False)
        self.config: TrainConfig = from_dict(config)
        self.classes = tuple(classes)
        self.network = make_network(self.config, len(self.classes))
        if self.config.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        layers = layers_of(self.network)
        for layer in layers[: int(self.config.frozen_fraction * len(layers))]:
            layer.requires_grad_(False).eval()  # a Trainer leaves every part in its mode
        # What waits while the last layer is trained alone.
        last = set(layers[-1].parameters())
        self.body = [p for p in self.network.parameters() if p.requires_grad and p not in last]
        self.train_tally, self.val_tally, self.test_tally = Tally(), Tally(), Tally()
        # Of the images that this process has tested.
        self.evaluation: Evaluation | None = None
        self.answers: list[Answers] = []
        # Of the loss, by class; None: all alike.
        self.class_weights: Tensor | None = None

    def load_pretrained(self) -> None:
        """What `pretrained` names, before a training that begins. Raises TrainError."""
        if self.config.pretrained != "false":
            load_pretrained(self.network, self.config.network, self.config.pretrained)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.network(images.contiguous(memory_format=torch.channels_last)))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the images, each with its class's weight."""
        smoothing, weight = self.config.label_smoothing, self.class_weights
        summed = F.cross_entropy(
            logits, targets, weight, label_smoothing=smoothing, reduction="sum"
        )
        return summed / len(targets)

    # -- training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.config.head_fraction:
            epochs, steps = self.epochs_and_steps()
            together = self.global_step >= self.config.head_fraction * epochs * steps
            if self.body and self.body[0].requires_grad != together:
                for p in self.body:
                    p.requires_grad_(together)

    def configure_optimizers(self) -> Any:
        peak = peak_learning_rate(self.config, self.trainer.world_size)
        optimizer = make_optimizer(self.network, self.config, peak, self.trainer.world_size)
        scheduler = make_scheduler(optimizer, self.config, self.epochs_and_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A training that goes on has the rates and decays of its own configuration, which may be
        others than those that were saved: Lightning restores the optimizer's."""
        if self._trainer is None or self.trainer.state.fn != "fit":
            return
        peak = peak_learning_rate(self.config, self.trainer.world_size)
        wanted = make_optimizer(self.network, self.config, peak, self.trainer.world_size)
        # What a divergence has lowered stays lowered.
        scale = checkpoint["callbacks"].get(FindDivergence.__qualname__, {}).get("rate_scale", 1.0)
        groups = checkpoint["optimizer_states"][0]["param_groups"]
        for group, own in zip(groups, wanted.param_groups, strict=True):
            kept = {name: group[name] for name in ("params", "fused") if name in group}
            group.update(own | kept, initial_lr=scale * own["lr"])
        checkpoint["lr_schedulers"][0]["base_lrs"] = [group["initial_lr"] for group in groups]

    def epochs_and_steps(self) -> tuple[int, float]:
        """Of this training: epochs, and steps of the optimizer in each.

        The steps are infinite until the Trainer has its loader. `estimated_stepping_batches` would
        make it have one at once, and then Lightning resumes no loader's state.
        """
        epochs = self.trainer.max_epochs or 0
        steps = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        return epochs if epochs > 0 else self.config.max_epochs, max(1.0, steps)

    def on_train_start(self) -> None:
        scheduler = cast(torch.optim.lr_scheduler.LambdaLR, self.lr_schedulers())
        # A resumed training may have another number of epochs than the one that set these.
        for group, base, factor in zip(
            scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(scheduler.last_epoch)
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.config.class_weights == "balanced" and hasattr(data, "train_images"):
            labels = data.train_images.labels
            self.class_weights = balanced_weights(labels, len(self.classes)).to(self.device)
        if isinstance(self.network, SpeedCNN) and not self.global_step:
            self.network.init_whitening(self.sample_images(WHITENING_IMAGES).to(self.device))

    def sample_images(self, count: int) -> Tensor:
        """Of the training images; where the loader is not ours, its first batch."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "sample_images"):
            return cast(Tensor, data.sample_images(count))
        batch = next(iter(cast(Any, self.trainer.train_dataloader)))
        return cast(Tensor, batch[0][:count])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self(images).float()
        loss = self.loss(logits, targets)
        self.train_tally.update(loss, logits, targets)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log_tally("train", self.train_tally)

    # -- validation and test

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # Without the test-time average: it is the same for all epochs, and six times the work.
        self.evaluate_batch(batch, "none", self.val_tally)

    def on_validation_epoch_start(self) -> None:
        self.val_tally.reset()

    def on_validation_epoch_end(self) -> None:
        self.log_tally("val", self.val_tally)

    def on_test_epoch_start(self) -> None:
        self.answers = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        answers = self.evaluate_batch(batch, self.config.tta, self.test_tally)
        if answers:
            self.answers.append(answers)

    def on_test_epoch_end(self) -> None:
        self.log_tally("test", self.test_tally)
        self.evaluation = Evaluation.of(self.answers, len(self.classes)) if self.answers else None

    def evaluate_batch(self, batch: Batch, tta: str, tally: Tally) -> Answers | None:
        """With logits averaged as `tta` says, and counted by plain cross-entropy; None for no
        images, of which one of several processes may have a share."""
        images, labels = batch
        if not len(labels):
            return None
        logits = averaged_logits(self, images, tta).float()
        answers = Answers.of(logits, labels)
        tally.update(answers.losses.mean(), logits, labels)
        return answers

    def log_tally(self, stage: str, tally: Tally) -> None:
        for name, value in tally.compute().items():
            if value is not None:
                self.log(f"{stage}_{name}", value, prog_bar=True)
        tally.reset()
