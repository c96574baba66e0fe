"""The recipes on a GPU: one command, under ten minutes, one table.

    # standard for some epochs, fast over five seeds, best once:
    python benchmarks/gpu.py --data cifar-10-python.tar.gz
    # standard to its end, and a plain ResNet-18 on the same images:
    python benchmarks/gpu.py --data … --full
    … --write       # into benchmarks/results/gpu.{md,json}

Clock: whitening, training and the final evaluation, without loading and compilation. Wall: the
whole process, which is what a person waits for. Memory and use are nvidia-smi's, sampled twice a
second, of the whole GPU: nothing else should run on it. A part for which the minutes don't suffice
is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from pages import write_page
from trainings import Row, Training, accuracies, column, describe, train

STANDARD_EPOCHS = 150
DOCUMENT_ACCURACY = "93%, and 1 to 2 hours"
"""What the page of instructions expects of `standard`."""
QUERY = [
    "nvidia-smi",
    "--query-gpu=index,utilization.gpu,memory.used",
    "--format=csv,noheader,nounits",
    "--loop-ms=500",
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        required=True,
        help="as for trainer.train; the original archive for figures that compare",
    )
    parser.add_argument("--seeds", type=int, default=5, help="of `fast`")
    parser.add_argument("--epochs", type=int, default=4, help="of `standard`, without --full")
    parser.add_argument(
        "--minutes",
        type=float,
        default=10,
        help="what would begin later is left out (0: no limit; --full has none)",
    )
    parser.add_argument(
        "--full", action="store_true", help="train `standard` to its end, and a ResNet-18 beside it"
    )
    parser.add_argument("--resnet-epochs", type=int, default=100)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field to change in all recipes",
    )
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="to try this program without a GPU: its figures mean nothing",
    )
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    import torch

    if not options.cpu and not torch.cuda.is_available():
        parser.error(
            "torch sees no GPU here: check nvidia-smi, and that torch is a CUDA build; --cpu only"
            " tries this program"
        )
    rows = measure(options)
    write_page(
        "gpu",
        "The recipes on a GPU",
        describe("gpu.py"),
        render(rows),
        {"rows": rows},
        options.write,
    )
    return 0 if all("error" not in row for row in rows) else 1


def measure(options: argparse.Namespace) -> list[Row]:
    """A row per training, in the order of what is wanted most."""
    changes = [*options.set, *(["accelerator=cpu"] if options.cpu else [])]
    begin = time.monotonic()
    limit = 60 * options.minutes if options.minutes and not options.full else None
    short = [] if options.full else [f"max_epochs={options.epochs}"]
    plan = [("fast", 1, []), ("standard", 1, short), ("best", 1, [])]
    plan += [("fast", seed, []) for seed in range(2, options.seeds + 1)]
    rows = []
    for recipe, seed, own in plan:
        left = None if limit is None else limit - (time.monotonic() - begin)
        rows.append(one(options.data, recipe, seed, [*changes, *own], left))
        print(rows[-1], file=sys.stderr)
    if options.full:
        rows.append(resnet18(options.data, options.resnet_epochs, options.cpu))
    return rows


def one(data: str, recipe: str, seed: int, changes: Sequence[str], left: float | None) -> Row:
    if left is not None and left < 5:
        return {"recipe": recipe, "seed": seed, "error": "no time was left"}
    try:
        with Gpu() as gpu:
            done = train(data, recipe, seed, changes, left)
    except subprocess.TimeoutExpired:
        return {"recipe": recipe, "seed": seed, "error": f"stopped after {left:.0f} s"}
    except subprocess.CalledProcessError as error:
        return {"recipe": recipe, "seed": seed, "error": f"exit code {error.returncode}"}
    return figures(done, recipe, seed) | gpu.figures()


def figures(done: Training, recipe: str, seed: int) -> Row:
    summary = done.summary
    # The first epoch starts workers and chooses kernels.
    steady = [row for row in done.epochs if row["epoch"] > 1] or list(done.epochs)
    return {
        "recipe": recipe,
        "seed": seed,
        "accuracy": summary["test_accuracy"],
        "test_images": summary["test_images"],
        "epochs": summary["epochs"],
        "max_epochs": summary["max_epochs"],
        "clock": summary["seconds"],
        "wall": done.wall,
        "images_per_s": statistics.median(row["images_per_s"] for row in steady),
        "epoch_s": statistics.median(row["seconds"] for row in steady),
    }


class Gpu:
    """nvidia-smi in the background. Figures are those of the busiest GPU; none where there is no
    nvidia-smi."""

    def __init__(self) -> None:
        self.samples: dict[str, list[tuple[float, float]]] = {}
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Gpu:
        try:
            self.process = subprocess.Popen(
                QUERY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:
            return self
        self.thread = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self.thread.start()
        return self

    def _read(self, lines: Any) -> None:
        for line in lines:
            index, *values = (part.strip() for part in line.split(","))
            try:
                use, memory = map(float, values)
            except ValueError:  # [N/A]
                continue
            self.samples.setdefault(index, []).append((use, memory))

    def __exit__(self, *error: object) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.thread.join()

    def figures(self) -> Row:
        if not self.samples:
            return {}
        busiest = max(self.samples.values(), key=lambda own: sum(use for use, _ in own))
        working = [use for use, _ in busiest if use > 0] or [0.0]
        return {
            "gpu_percent": statistics.mean(working),
            "memory_mib": max(memory for _, memory in busiest),
        }


def resnet18(data: str, epochs: int, cpu: bool) -> Row:
    """torchvision's ResNet-18 with a 3×3 stem, SGD and a cosine, bf16, crops and flips: the usual
    yardstick, on the same images."""
    import torch
    import torch.nn.functional as F
    from torchvision.models import resnet18 as make

    from trainer.config import load_config
    from trainer.data.augment import augment, epoch_order
    from trainer.data.images import Arrays
    from trainer.data.sources import load_images
    from trainer.evaluate import evaluate
    from trainer.networks import Normalise

    device = torch.device("cpu" if cpu else "cuda")
    images = load_images(data)
    assert isinstance(images.train, Arrays), "CIFAR-10 is in memory"
    config = load_config("standard", {"mixup_prob": 0})
    network = make(num_classes=len(images.classes))
    network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = torch.nn.Identity()
    network = torch.nn.Sequential(Normalise(), network)
    network = network.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    batch = 128
    steps = len(images.train) // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    pixels, labels = images.train.images.to(device), images.train.labels.to(device)
    begin = time.perf_counter()
    for epoch in range(epochs):
        network.train()
        order = epoch_order(len(labels), 1, epoch).to(device)
        for step in range(steps):
            some = order[step * batch : (step + 1) * batch]
            shown = augment(pixels[some], some, epoch, config).contiguous(
                memory_format=torch.channels_last
            )
            with torch.autocast(device.type, torch.bfloat16, enabled=not cpu):
                loss = F.cross_entropy(network(shown).float(), labels[some])
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    result = evaluate(network, images.test, half=not cpu)
    seconds = time.perf_counter() - begin
    return {
        "recipe": "ResNet-18",
        "seed": 1,
        "accuracy": result.accuracy,
        "test_images": result.count,
        "epochs": epochs,
        "clock": seconds,
        "wall": None,
        "images_per_s": epochs * steps * batch / seconds,
        "epoch_s": seconds / epochs,
    }


def render(rows: Sequence[Row]) -> str:
    lines = [
        (
            "| recipe | n | epochs | test accuracy, mean ± sd | 95% interval "
            "| clock, s | wall, s | s per epoch | images/s | GPU use, % | memory, MiB |"
        ),
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    done = [row for row in rows if "error" not in row]
    for recipe in dict.fromkeys(row["recipe"] for row in done):
        own = [row for row in done if row["recipe"] == recipe]
        cells = [
            column(own, name, digits)
            for name, digits in (
                ("clock", 2),
                ("wall", 1),
                ("epoch_s", 2),
                ("images_per_s", 0),
                ("gpu_percent", 0),
                ("memory_mib", 0),
            )
        ]
        lines.append(
            f"| {recipe} | {len(own)} | {own[0]['epochs']} | {' | '.join(accuracies(own))} |"
            f" {' | '.join(cells)} |"
        )
    lines += [
        "",
        "Several values: median (min–max). The interval is that of the number of test images.",
    ]
    lines += [
        f"{row['recipe']}, seed {row['seed']}: {row['error']}." for row in rows if "error" in row
    ]
    for row in done:
        if row["recipe"] == "standard" and row["max_epochs"] < STANDARD_EPOCHS:
            told = (
                f"projected to {STANDARD_EPOCHS} epochs:"
                f" {STANDARD_EPOCHS * row['epoch_s'] / 60:.1f} minutes"
            )
            lines.append(f"standard, {told} (the document: {DOCUMENT_ACCURACY}).")
        elif row["recipe"] == "standard":
            told = f"to its end: {100 * row['accuracy']:.2f}% in {row['clock'] / 60:.1f} minutes"
            lines.append(f"standard, {told} (the document: {DOCUMENT_ACCURACY}).")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
