"""The pictures and the page of a finished run: curves.png, confusion.png, report.md."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.progress import History, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY_CLASSES = 30
"""Beyond so many the matrix is drawn without numbers and names."""


def write_report(run_dir: Path, summary: Mapping[str, Any], history: History) -> None:
    write_whole(run_dir / "curves.png", to_png(draw_curves(history, summary)))
    write_whole(
        run_dir / "confusion.png",
        to_png(draw_confusion(summary["confusion"], summary["data"]["classes"])),
    )
    write_whole(run_dir / "report.md", render_report(summary).encode())


def to_png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def new_figure(width: float, height: float) -> Figure:
    # Without pyplot: nothing global, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_curves(history: History, summary: Mapping[str, Any]) -> Figure:
    """Loss, accuracy and learning rate over the epochs, with the epoch that was chosen."""
    figure = new_figure(11, 3.6)
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

    line(loss, "train_loss", "training")
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
    axes.set_title("share of each true class in %")
    if count > MANY_CLASSES:
        return figure
    axes.set_xticks(range(count), labels=list(classes), rotation=45, ha="right")
    axes.set_yticks(range(count), labels=list(classes))
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


def percent(fraction: Any) -> str:
    return f"{100 * fraction:.2f}%" if isinstance(fraction, (int, float)) else "–"


def render_report(summary: Mapping[str, Any]) -> str:
    data, config = summary["data"], summary["config"]
    note = (
        "\n\nThese images are synthetic: the accuracy says nothing about real ones."
        if data["kind"] == "synthetic"
        else ""
    )
    rows = "\n".join(
        f"| {name} | {percent(accuracy)} |" for name, accuracy in summary["per_class"].items()
    )
    held = (
        f", {data['validation']} for validation"
        if data["validation"]
        else "; no validation split, the last epoch counts"
    )
    best = (
        f" (best epoch {summary['best_epoch']}, validation {percent(summary['val_accuracy'])})"
        if summary["best_epoch"]
        else ""
    )
    versions = ", ".join(
        f"{name} {version}" for name, version in summary["versions"].items() if name != "system"
    )
    changed = "\n".join(f"    {name}: {value}" for name, value in config.items())
    epochs = f"{summary['epochs']} of {summary['max_epochs']} epochs"
    rate = f"peak learning rate {summary['learning_rate']:g}"
    return f"""# Test accuracy {percent(summary["test_accuracy"])}

On {summary["test_images"]} test images, of `{summary["checkpoint"]}`, read once at the end.{note}

- {epochs}{best}, {summary["seconds"]:.0f} s of training
- data: {data["kind"]}, {data["train"]} images to train on{held}; sha256 `{data["sha256"]}`
- effective batch {summary["effective_batch"]}, {rate}, seed {summary["seed"]}
- {"; ".join(line.strip() for line in summary["devices"])}
- {versions}

![curves](curves.png)

| class | accuracy |
|---|---|
{rows}

![confusion matrix](confusion.png)

Every value of the recipe `{config["recipe"]}`:

{changed}
"""
