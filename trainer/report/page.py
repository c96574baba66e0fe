"""The page of a finished run, with its pictures: curves.png, confusion.png, mistakes.png,
report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.progress import History, write_whole
from trainer.report.mistakes import Mistakes


def write_report(
    run_dir: Path, summary: Mapping[str, Any], history: History, mistakes: Mistakes | None = None
) -> None:
    # Only here: matplotlib takes a while to import.
    from trainer.report.pictures import draw_confusion, draw_curves, draw_mistakes, to_png

    classes = summary["data"]["classes"]
    figures = {
        "curves": draw_curves(history, summary, run_dir.name),
        "confusion": draw_confusion(summary["confusion"], classes),
    }
    if mistakes:
        figures["mistakes"] = draw_mistakes(mistakes, classes)
    for name, figure in figures.items():
        write_whole(run_dir / f"{name}.png", to_png(figure))
    write_whole(run_dir / "report.md", render_report(summary, mistakes).encode())


def legend_of_numbers(classes: Sequence[str]) -> str:
    """Where the pictures have numbers in place of names that no font here can show."""
    from trainer.report.pictures import names_for_pictures

    if names_for_pictures(classes)[0] == classes:
        return ""
    return "\nThe pictures have the classes' numbers: no font here has the signs of their names.\n"


def describe_mistakes(mistakes: Mistakes | None, classes: Sequence[str]) -> str:
    if not mistakes:
        return ""
    lines = [
        f"{number + 1}. `{file}`: {classes[truth]}, taken for {classes[taken]} ({percent(certain)})"
        for number, (file, truth, taken, certain) in enumerate(
            zip(mistakes.files, mistakes.truth, mistakes.taken, mistakes.confidence, strict=False)
        )
    ]
    listed = "\n\n" + "\n".join(lines) if lines else ""
    return f"""
## The worst mistakes

Each image beside the places that spoke for the wrong answer (Grad-CAM).

![mistakes](mistakes.png){listed}
"""


def percent(fraction: Any) -> str:
    return f"{100 * fraction:.2f}%" if isinstance(fraction, (int, float)) else "–"


def render_scores(summary: Mapping[str, Any]) -> str:
    """Class by class, and the mean over the classes."""
    scores = [*summary["scores"].items(), ("**mean**", summary["macro"])]
    counts = [str(sum(row)) for row in summary["confusion"]] + [str(summary["test_images"])]
    rows = [
        f"| {number} | {name} | {count} |"
        + "|".join(f" {percent(score[key])} " for key in ("precision", "recall", "f1"))
        + "|"
        for number, ((name, score), count) in enumerate(zip(scores, counts, strict=True), 1)
    ]
    rows[-1] = rows[-1].replace(f"| {len(rows)} |", "| |", 1)
    head = "| | class | images | precision | recall | F1 |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(rows)


def describe_images(data: Mapping[str, Any]) -> str:
    damaged = f"; {len(data['damaged'])} damaged files left out" if data["damaged"] else ""
    held = (
        f", {data['validation']} for validation"
        if data["validation"]
        else "; no validation split, the last epoch counts"
    )
    return (
        f"{data['kind']}, {data['train']} images of {data['image_size']} pixels per side to train"
        f" on{held}{damaged}; sha256 `{data['sha256']}`"
    )


def render_report(summary: Mapping[str, Any], mistakes: Mistakes | None = None) -> str:
    data, config = summary["data"], summary["config"]
    note = (
        "\n\nThese images are synthetic: the accuracy says nothing about real ones."
        if data["kind"] == "synthetic"
        else ""
    )
    macro = summary["macro"]
    uneven = (
        f", and in the mean over the classes, which are uneven: recall {percent(macro['recall'])},"
        f" F1 {percent(macro['f1'])}"
        if summary["uneven"]
        else ""
    )
    best = (
        f" (best epoch {summary['best_epoch']}, validation {percent(summary['val_accuracy'])})"
        if summary["best_epoch"]
        else ""
    )
    versions = ", ".join(
        f"{name} {version}" for name, version in summary["versions"].items() if name != "system"
    )
    values = "\n".join(f"    {name}: {value}" for name, value in config.items())
    changes = "".join(f"- {text}\n" for text in summary.get("changes", ()))
    epochs = f"{summary['epochs']} of {summary['max_epochs']} epochs"
    rate = f"peak learning rate {summary['learning_rate']:g}"
    return f"""# Test accuracy {percent(summary["test_accuracy"])}{uneven}

On {summary["test_images"]} test images, of `{summary["checkpoint"]}`, read once at the end.{note}

- {epochs}{best}, {summary["seconds"]:.0f} s of training
- data: {describe_images(data)}
- expected calibration error {percent(summary["calibration_error"])}: how far the probabilities are
  from the share of right answers, in the mean
- effective batch {summary["effective_batch"]}, {rate}, seed {summary["seed"]}
{changes}- {"; ".join(line.strip() for line in summary["devices"])}
- {versions}

![curves](curves.png)

{render_scores(summary)}

![confusion matrix](confusion.png)
{legend_of_numbers(data["classes"])}{describe_mistakes(mistakes, data["classes"])}
Every value of the recipe `{config["recipe"]}`:

{values}
"""
