"""What a trial of torch on a server's GPUs means."""

from __future__ import annotations

from typing import Any

import pytest

from remote.agent.environments.gpu_check import verdict_of
from remote.agent.root.calls import Refusal
from remote.agent.shared.gpu_choice import Gpu, GpuReport


def smi(count: int) -> GpuReport:
    gpus = (Gpu(n, f"GPU-{n}", "H100", compute_capability=9.0) for n in range(count))
    return GpuReport(tuple(gpus), driver_version="550.1", found=True)


ONE = smi(1)
GOOD: dict[str, Any] = {"number": 0, "name": "H100", "capability": "9.0", "ok": True}


def proof(*devices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "torch": "2.5",
        "cuda": "12.4",
        "hip": None,
        "available": True,
        "arch": ["sm_90"],
        "driver": "550.1",
        "devices": list(devices),
        **more,
    }


@pytest.mark.parametrize(
    ("proved", "report", "ok", "gpu", "reason"),
    [
        (proof(GOOD), ONE, True, True, None),
        (
            proof(available=False),
            GpuReport(found=False),
            True,
            False,
            "no GPU: training will run on the CPU",
        ),
        (
            proof(available=False),
            GpuReport(found=True, fails=True),
            False,
            False,
            "nvidia-smi fails",
        ),
        (proof(GOOD), smi(2), True, True, "torch sees 1 of 2 GPUs"),
        (
            proof(GOOD | {"ok": False, "busy": True, "problem": "CUDA out of memory"}),
            ONE,
            False,
            False,
            "full or reserved",
        ),
    ],
)
def test_what_a_trial_means(
    proved: dict[str, Any], report: GpuReport, ok: bool, gpu: bool, reason: str | None
) -> None:
    told = verdict_of(proved, report, {})
    assert (told["ok"], told["gpu"]) == (ok, gpu) and (
        told["reason"] is None if reason is None else reason in told["reason"]
    )


@pytest.mark.parametrize(
    ("proved", "message", "remedy"),
    [
        (
            proof(cuda=None, available=False),
            "is a build for the CPU, but the server has 1 GPU",
            "remote.torch: cu126",
        ),
        (
            proof(available=False, cuda="13.0"),
            r"torch 2.5 \(CUDA 13.0\) needs driver ≥ 580; this is 550.1",
            "remote.torch: cu126",
        ),
        (
            proof(available=False, warnings=["CUDA unknown error"]),
            "can't use the GPU: CUDA unknown error",
            "nvidia-smi",
        ),
        (
            proof(GOOD | {"ok": False, "problem": "CUDA error: no kernel image is available"}),
            r"no kernels for H100 \(sm_90\)",
            "cu126",
        ),
        (
            proof(GOOD | {"ok": False, "problem": "it computes 1 where 2 is right"}),
            "gpu 0 .* fails in torch 2.5: it computes 1",
            "--devices",
        ),
        (
            proof(failed=["torchvision", "RuntimeError: operator torchvision::nms"]),
            "of different builds: torchvision can't be imported",
            "remote",
        ),
    ],
)
def test_what_does_not_work_together_is_an_error_with_its_remedy(
    proved: dict[str, Any], message: str, remedy: str
) -> None:
    with pytest.raises(Refusal, match=message) as caught:
        verdict_of(
            proved, ONE, {"kind": "venv", "base": "/usr/bin/python3", "wanted": {"torch": "auto"}}
        )
    assert remedy in str(caught.value.remedy)


def test_a_cpu_build_that_was_asked_for_is_no_error() -> None:
    told = verdict_of(proof(cuda=None, available=False), ONE, {"wanted": {"torch": "cpu"}})
    assert told["ok"] and "remote.torch is cpu" in told["reason"]
