"""gpu.csv: the GPUs of the run, and no others."""

from __future__ import annotations

import csv
import time
from pathlib import Path

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
