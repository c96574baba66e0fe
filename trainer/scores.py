"""What an evaluation says: of the whole set, class by class, and image by image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

UNEVEN = 1.5
"""A test set whose largest class has so many times the images of its smallest is uneven."""
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Score:
    """Of one class, or in the mean. recall: the share of its images that was recognised; precision:
    the share of what was taken for it that was right; f1: their harmonic mean."""

    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Answers:
    """Image by image, in the set's order, each [N]: the true class, the one it was taken for, with
    which probability, and the cross-entropy."""

    truth: Tensor
    taken: Tensor
    confidence: Tensor
    losses: Tensor

    @staticmethod
    def of(logits: Tensor, truth: Tensor) -> Answers:
        confidence, taken = logits.softmax(1).max(1)
        return Answers(truth, taken, confidence, F.cross_entropy(logits, truth, reduction="none"))

    @staticmethod
    def join(parts: Sequence[Answers]) -> Answers:
        names = ("truth", "taken", "confidence", "losses")
        return Answers(
            *(torch.cat([getattr(part, name) for part in parts]).cpu() for name in names)
        )

    def calibration_error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): how far the probabilities are from the
        share of right answers, in the mean."""
        right = (self.taken == self.truth).long()
        error = binary_calibration_error(
            self.confidence, right, CALIBRATION_BINS, "l1", validate_args=False
        )
        return float(error)

    def worst(self, count: int) -> Tensor:
        """Places of the wrong answers, those of the highest cross-entropy first."""
        wrong = (self.taken != self.truth).nonzero()[:, 0]
        return wrong[self.losses[wrong].argsort(descending=True)[:count]]


@dataclass(frozen=True)
class Evaluation:
    """confusion: int64 [classes, classes], row the true class, column the predicted one. `loss`:
    mean cross-entropy. `answers`: image by image."""

    loss: float
    confusion: Tensor
    answers: Answers | None = None

    @staticmethod
    def of(parts: Sequence[Answers], classes: int) -> Evaluation:
        """Of all images that a process has seen, at least one."""
        answers = Answers.join(parts)
        pairs = answers.truth * classes + answers.taken
        confusion = torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
        return Evaluation(float(answers.losses.double().mean()), confusion, answers)

    @property
    def count(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        return int(self.confusion.diag().sum()) / max(1, self.count)

    def per_class(self) -> list[float | None]:
        """The share of each class's images that was recognised; None for a class without images."""
        return [score.recall for score in self.scores()]

    def scores(self) -> list[Score]:
        """By class. Precision is None where nothing was taken for the class."""
        return [
            Score(
                right / taken if taken else None,
                right / there if there else None,
                2 * right / (taken + there) if there else None,
            )
            for right, taken, there in zip(
                self.confusion.diag().tolist(),
                self.confusion.sum(0).tolist(),
                self.confusion.sum(1).tolist(),
                strict=True,
            )
        ]

    def macro(self) -> Score:
        """The mean over the classes that have images, each counting the same; of precisions 0 where
        nothing was taken for a class."""
        there = [score for score in self.scores() if score.recall is not None]

        def mean(values: Iterable[float | None]) -> float:
            return sum(value or 0.0 for value in values) / max(1, len(there))

        return Score(
            mean(score.precision for score in there),
            mean(score.recall for score in there),
            mean(score.f1 for score in there),
        )

    @property
    def uneven(self) -> bool:
        """Some class has far more images than another: then the accuracy says little by itself."""
        counts = [count for count in self.confusion.sum(1).tolist() if count]
        return max(counts, default=0) > UNEVEN * min(counts, default=0)

    def shown(self) -> str:
        """0.9123, and of an uneven set the mean over the classes beside it."""
        if not self.uneven:
            return f"{self.accuracy:.4f}"
        macro = self.macro()
        return (
            f"{self.accuracy:.4f} (uneven classes: recall {macro.recall:.4f} and F1 {macro.f1:.4f}"
            " in the mean over them)"
        )


def table(evaluation: Evaluation, classes: tuple[str, ...]) -> str:
    """Precision, recall and F1 by class."""
    width = max(map(len, (*classes, "mean")))
    lines = [f"  {'':<{width}}  precision   recall       F1"]
    for name, score in zip(
        (*classes, "mean"), (*evaluation.scores(), evaluation.macro()), strict=True
    ):
        cells = "  ".join(f"{percent(value):>7}" for value in asdict(score).values())
        lines.append(f"  {name:<{width}}    {cells}")
    return "\n".join(lines)


def percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.2f}%"
