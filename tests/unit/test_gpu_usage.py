"""gpu.csv: the GPUs of the run, and no others."""

from __future__ import annotations

import csv
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from remote.agent.supervisor import gpu_usage
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi

GPUS = [FakeGpu(uuid=f"GPU-{number}") for number in range(3)]


@pytest.mark.parametrize(
    ("given", "visible", "seen"),
    [
        (["GPU-1"], None, {"GPU-1"}),
        ([], None, set()),
        (None, None, {"GPU-0", "GPU-1", "GPU-2"}),
        (None, "0,2", {"GPU-0", "GPU-2"}),  # as Slurm tells a job
        (None, "GPU-2", {"GPU-2"}),
        (["GPU-1"], "0", {"GPU-1"}),
    ],
)
def test_only_the_runs_own(
    given: list[str] | None,
    visible: str | None,
    seen: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_nvidia_smi(tmp_path / "nvidia-smi", GPUS)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    sampler, file = gpu_usage.Sampler(str(tmp_path), given), tmp_path / "gpu.csv"
    while not file.exists() or not file.stat().st_size:
        time.sleep(0.01)
    sampler.end()
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert {row["uuid"] for row in rows} == seen


def test_a_disk_that_takes_nothing_does_not_make_a_gpu_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = threading.Semaphore(0)

    def look(named: object) -> list[list[Any]]:
        looks.release()
        return [[0, "GPU-0", 0, 100, 1000, 50]]

    monkeypatch.setattr(gpu_usage, "EVERY_S", 0.01)
    monkeypatch.setattr("remote.agent.machine.gpus.sample_usage", look)
    (tmp_path / "gpu.csv").mkdir()
    sampler = gpu_usage.Sampler(str(tmp_path), None)
    assert all(looks.acquire(timeout=5) for _ in range(5)) and sampler.idle_s > 0
    monkeypatch.setattr(
        "remote.agent.machine.gpus.sample_usage", lambda named: [[0, "GPU-0", 99, 1, 2, 3]]
    )
    while sampler.idle_s:
        time.sleep(0.01)
    sampler.end()


def test_while_nvidia_smi_hangs_nothing_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answers = threading.Semaphore(0), threading.Semaphore(1)

    def look(named: object) -> list[list[Any]]:
        asked.release()
        assert answers.acquire(timeout=5)
        return [[0, "GPU-0", 0, 100, 1000, 50]]

    monkeypatch.setattr(gpu_usage, "EVERY_S", 0.01)
    monkeypatch.setattr("remote.agent.machine.gpus.sample_usage", look)
    sampler = gpu_usage.Sampler(str(tmp_path), None)
    assert asked.acquire(timeout=5) and asked.acquire(timeout=5)  # the second one hangs
    time.sleep(0.2)
    assert sampler.idle_s <= 0.02
    answers.release()
    assert asked.acquire(timeout=5) and sampler.idle_s <= 0.04
    sampler.end()
    answers.release()
