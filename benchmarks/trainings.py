"""One training as a process of its own, and what its figures are: shared by trainer.py and
gpu.py."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import about, spread

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

Row = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """`wall`, `cpu`: seconds of the whole process. `epochs`: rows of metrics.csv, numbers as
    float."""

    summary: Row
    epochs: Sequence[Mapping[str, float]]
    wall: float
    cpu: float


def train(
    data: str, recipe: str, seed: int, changes: Iterable[str], timeout: float | None = None
) -> Training:
    """Raises subprocess.TimeoutExpired, or CalledProcessError where the training fails; what it
    says goes to stderr."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        words = [
            "--recipe",
            recipe,
            "--data",
            data,
            "--seed",
            str(seed),
            "--run_dir",
            f"{folder}/run",
        ]
        for change in changes:
            words += ["--set", change]
        argv = [sys.executable, "-m", "trainer.train", *words]
        begin, before = time.perf_counter(), cpu_seconds()
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        subprocess.run(
            argv, cwd=folder, env=environment, check=True, stdout=sys.stderr, timeout=timeout
        )
        wall, cpu = time.perf_counter() - begin, cpu_seconds() - before
        with open(f"{folder}/run/metrics.csv", newline="") as file:
            epochs = [
                {name: float(value) for name, value in row.items() if value}
                for row in csv.DictReader(file)
            ]
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
        return Training(summary, epochs, wall, cpu)


def cpu_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def describe(script: str) -> Row:
    """What a table must say about itself; the machine is the GPU where there is one."""
    import torch

    said = about(script, f"torch {torch.__version__}")
    return said | ({"machine": torch.cuda.get_device_name(0)} if torch.cuda.is_available() else {})


def column(rows: Sequence[Mapping[str, Any]], name: str, digits: int = 0) -> str:
    return spread((row.get(name) for row in rows), digits)


def accuracies(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Mean ± standard deviation over the seeds, and the 95% interval of the mean as far as the test
    images bound it.

    All seeds see the same test images: their number bounds what can be known, however many seeds
    there are.
    """
    values = [row["accuracy"] for row in rows]
    mean = statistics.mean(values)
    error = math.sqrt(mean * (1 - mean) / rows[0]["test_images"])
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return (
        f"{100 * mean:.2f}%{deviation}",
        f"{100 * (mean - 1.96 * error):.1f}–{100 * (mean + 1.96 * error):.1f}%",
    )
