"""What a trial of torch on a server's GPUs means."""

from __future__ import annotations

from typing import Any

import pytest

from remote.agent.environments.gpu_check import Trial, verdict_of
from remote.agent.root.calls import Refusal
from remote.agent.shared.environment import Environment
from remote.agent.shared.gpu_choice import Gpu, GpuReport
from remote.agent.shared.reading import read


def smi(count: int) -> GpuReport:
    gpus = (Gpu(n, f"GPU-{n}", "H100", compute_capability=9.0) for n in range(count))
    return GpuReport(tuple(gpus), driver_version="550.1", found=True)


ONE = smi(1)
GOOD: dict[str, Any] = {"number": 0, "name": "H100", "capability": "9.0", "ok": True}


def trial(*devices: dict[str, Any], **more: Any) -> Trial:
    told = {"torch": "2.5", "cuda": "12.4", "hip": None, "available": True, "arch": ["sm_90"]}
    return read(Trial, {**told, "devices": list(devices), **more})


@pytest.mark.parametrize(
    ("tried", "report", "ok", "gpu", "reason"),
    [
        (trial(GOOD), ONE, True, True, None),
        (
            trial(available=False),
            GpuReport(found=False),
            True,
            False,
            "no GPU: training will run on the CPU",
        ),
        (
            trial(available=False),
            GpuReport(found=True, fails=True),
            False,
            False,
            "nvidia-smi fails",
        ),
        (trial(GOOD), smi(2), True, True, "torch sees 1 of 2 GPUs"),
        (
            trial(GOOD | {"ok": False, "busy": True, "problem": "CUDA out of memory"}),
            ONE,
            False,
            False,
            "full or reserved",
        ),
    ],
)
def test_what_a_trial_means(
    tried: Trial, report: GpuReport, ok: bool, gpu: bool, reason: str | None
) -> None:
    told = verdict_of(tried, report, Environment())
    assert (told.ok, told.gpu) == (ok, gpu)
    assert told.reason is None if reason is None else reason in str(told.reason)


@pytest.mark.parametrize(
    ("tried", "message", "remedy"),
    [
        (
            trial(cuda=None, available=False),
            "is a build for the CPU, but the server has 1 GPU",
            "remote.torch: cu126",
        ),
        (
            trial(available=False, cuda="13.0"),
            r"torch 2.5 \(CUDA 13.0\) needs driver ≥ 580; this is 550.1",
            "remote.torch: cu126",
        ),
        (
            trial(available=False, warnings=["CUDA unknown error"]),
            "can't use the GPU: CUDA unknown error",
            "nvidia-smi",
        ),
        (
            trial(GOOD | {"ok": False, "problem": "CUDA error: no kernel image is available"}),
            r"no kernels for H100 \(sm_90\)",
            "cu126",
        ),
        (
            trial(GOOD | {"ok": False, "problem": "it computes 1 where 2 is right"}),
            "gpu 0 .* fails in torch 2.5: it computes 1",
            "--devices",
        ),
        (
            trial(failed=["torchvision", "RuntimeError: operator torchvision::nms"]),
            "of different builds: torchvision can't be imported",
            "remote",
        ),
    ],
)
def test_what_does_not_work_together_is_an_error_with_its_remedy(
    tried: Trial, message: str, remedy: str
) -> None:
    with pytest.raises(Refusal, match=message) as caught:
        made = Environment(kind="venv", base="/usr/bin/python3", wanted={"torch": "auto"})
        verdict_of(tried, ONE, made)
    assert remedy in str(caught.value.remedy)


def test_a_cpu_build_that_was_asked_for_is_no_error() -> None:
    made = Environment(wanted={"torch": "cpu"})
    told = verdict_of(trial(cuda=None, available=False), ONE, made)
    assert told.ok and "remote.torch is cpu" in str(told.reason)
