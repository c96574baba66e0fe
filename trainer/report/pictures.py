"""The pictures of a finished run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from trainer.progress import History
from trainer.report.fonts import font_for
from trainer.report.mistakes import Mistakes

COLUMNS = 3
"""Of mistakes in the picture."""
MANY_CLASSES = 30
"""Beyond so many the matrix is drawn without numbers and names."""


def to_png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def new_figure(width: float, height: float) -> Figure:
    # Without pyplot: nothing global, no display.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def names_for_pictures(classes: Sequence[str]) -> tuple[Sequence[str], FontProperties | None]:
    """The classes' names and a font for them; numbers where no font here has their signs."""
    font = font_for(classes)
    return (classes, font) if font else ([str(n + 1) for n in range(len(classes))], None)


def training_label(config: Mapping[str, Any]) -> str:
    """Why the training's loss is not to be compared with the validation's."""
    kinds = {
        "mixup_prob": "mixed images",
        "label_smoothing": "smoothed labels",
        "class_weights": "weighted classes",
    }
    found = [text for name, text in kinds.items() if config.get(name) not in (None, 0, "none")]
    return f"training ({', '.join(found)})" if found else "training"


def draw_curves(history: History, summary: Mapping[str, Any], run: str = "") -> Figure:
    """Loss, accuracy and learning rate over the epochs, with the epoch that was chosen."""
    figure = new_figure(11, 3.8)
    figure.suptitle(run)
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]

    def line(axes: Any, name: str, label: str, factor: float = 1.0) -> None:
        points = [
            (epoch, factor * row[name])
            for epoch, row in zip(epochs, history, strict=True)
            if row.get(name) is not None
        ]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                label=label,
                marker="o" if len(points) < 12 else None,
                markersize=3,
            )

    line(loss, "train_loss", training_label(summary.get("config") or {}))
    line(loss, "val_loss", "validation")
    line(accuracy, "train_accuracy", "training", 100)
    line(accuracy, "val_accuracy", "validation", 100)
    line(rate, "learning_rate", "learning rate")
    test, best = summary.get("test_accuracy"), summary.get("best_epoch")
    if test is not None:
        accuracy.axhline(100 * test, color="0.4", linestyle=":", label=f"test {100 * test:.2f}%")
    for axes, title in ((loss, "loss"), (accuracy, "accuracy in %"), (rate, "learning rate")):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if best is not None:
            axes.axvline(best, color="0.7", linewidth=1, zorder=0, label=f"best epoch {best}")
        if axes is not rate and axes.get_legend_handles_labels()[0]:
            axes.legend()
    return figure


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    count = len(classes)
    shares = [[100 * cell / max(1, sum(row)) for cell in row] for row in confusion]
    side = min(12.0, 2.2 + 0.55 * count)
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class")
    axes.set_title("in % of each true class", fontsize="medium")
    if count > MANY_CLASSES:
        return figure
    names, font = names_for_pictures(classes)
    axes.set_xticks(range(count), labels=names, rotation=45, ha="right", font=font)
    axes.set_yticks(range(count), labels=names, font=font)
    for y, row in enumerate(shares):
        for x, share in enumerate(row):
            if share >= 0.05:
                axes.text(
                    x,
                    y,
                    f"{share:.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share > 60 else "black",
                )
    return figure


def draw_mistakes(mistakes: Mistakes, classes: Sequence[str]) -> Figure:
    """Each image beside itself under its heat map."""
    names, font = names_for_pictures(classes)
    rows = -(-len(mistakes) // COLUMNS)
    figure = new_figure(3.6 * COLUMNS, 2.2 * rows)
    cells = figure.subplots(rows, 2 * COLUMNS, squeeze=False).flatten()
    for cell in cells:
        cell.axis("off")
    for number, image in enumerate(mistakes.images.permute(0, 2, 3, 1).numpy()):
        plain, heated = cells[2 * number], cells[2 * number + 1]
        plain.imshow(image)
        true, taken = names[mistakes.truth[number]], names[mistakes.taken[number]]
        certain = f"{100 * mistakes.confidence[number]:.0f}%"
        plain.set_title(f"{number + 1}: {true}", fontsize=8, font=font)
        heated.set_title(f"as {taken}, {certain}", fontsize=8, font=font)
        heated.imshow(image)
        if mistakes.heat is not None:
            heated.imshow(mistakes.heat[number].numpy(), cmap="jet", alpha=0.4, vmin=0, vmax=1)
    return figure
