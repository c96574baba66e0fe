"""Whether torch is known to run on the server's GPUs, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from remote.deploy.environment import KEPT
from remote.deploy.proofs import describe_environment, describe_proofs, proof_needed
from remote.records import EnvironmentPlan, Gpu, GpuReport
from tests.support.interpreters import NO_GPU, SYSTEM, gpu_facts, record

REPORT = GpuReport((Gpu(0, "GPU-1", "H100"),), "550.54.15", True)
PROOF = {
    "ok": True,
    "gpu": True,
    "driver": "550.54.15",
    "gpu_uuids": ["GPU-1"],
    "boot_id": "boot",
    "host": "box",
    "reason": None,
}


def facts_of(
    environment: Mapping[str, Any], gpu: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {"system": SYSTEM, "environments": [environment], "gpu": gpu or gpu_facts()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"boot_id": "earlier"}, "not tried since the server started"),
        ({"host": "other box"}, "not tried since the server started"),
        ({"driver": "535.1"}, "the driver changed from 535.1 to 550.54.15"),
        ({"gpu_uuids": ["GPU-2"]}, "the GPUs changed"),
        ({"ok": False, "reason": "every GPU is full"}, "the last trial failed (every GPU is full)"),
    ],
)
def test_a_proof_holds_for_its_boot_driver_and_gpus(
    change: dict[str, Any], reason: str | None
) -> None:
    environment = record(proofs=[PROOF | change])
    assert proof_needed(environment, facts_of(environment), REPORT) == reason


def test_other_hosts_of_a_shared_home_keep_their_proofs() -> None:
    environment = record(
        proofs=[PROOF, PROOF | {"host": "other", "boot_id": "b2", "driver": "535.1"}]
    )
    assert proof_needed(environment, facts_of(environment), REPORT) is None


def test_what_needs_no_torch_needs_no_proof() -> None:
    environment = record(needs_torch=False)
    assert proof_needed(environment, facts_of(environment), REPORT) is None
    assert proof_needed(record(), facts_of(record()), REPORT) == "not tried yet"


def test_a_server_without_gpu_is_proved_once_too() -> None:
    environment = record(proofs=[PROOF | {"driver": None, "gpu_uuids": [], "gpu": False}])
    assert proof_needed(environment, facts_of(environment, NO_GPU), GpuReport()) is None


def test_the_summary_says_what_was_done_or_why_nothing() -> None:
    kept = describe_environment(EnvironmentPlan("keep", KEPT), record(proof=PROOF))
    assert (
        kept == f"{KEPT} (python 3.11.7, torch 2.5.1+cu124, CUDA 12.4); GPU works (the proof still"
        " holds)"
    )
    built = describe_environment(
        EnvironmentPlan("venv", "why"),
        record(
            proof=PROOF,
            proved=True,
            made=True,
            base="/usr/bin/python3",
            seconds=92.3,
            installer="uv",
        ),
    )
    assert (
        built
        == "environment built: a venv of /usr/bin/python3 in 92 s with uv (python 3.11.7, torch"
        " 2.5.1+cu124, CUDA 12.4); GPU works (tried just now)"
    )
    no_gpu = {"ok": True, "gpu": False, "reason": "no GPU: y"}
    warned = describe_environment(
        EnvironmentPlan("as-is", "why"), record(made=True, proof=no_gpu, base="/x", names=["torch"])
    )
    assert warned.startswith("environment: /x is used as it is (") and warned.endswith(
        "; warning: no GPU: y"
    )
    other = describe_environment(
        EnvironmentPlan("venv", "why"), record(made=False, needs_torch=False, torch={})
    )
    assert (
        other
        == "environment ready: somebody else's deploy has built it (python 3.11.7); no torch is"
        " required"
    )


def test_check_gpu_tells_what_torch_sees() -> None:
    proved = record(proofs=[PROOF])
    assert describe_proofs(facts_of(proved)) == [
        "environment 00000000 (python 3.11.7, torch 2.5.1+cu124, CUDA 12.4): GPU works (the proof"
        " still holds)"
    ]
    assert describe_proofs(facts_of(record()))[0].endswith(
        "the next deploy tries it: not tried yet"
    )
    assert describe_proofs(facts_of(record(valid=False, changed="/x is gone")))[0].endswith(
        "tries it: /x is gone"
    )
    assert describe_proofs(facts_of(record(ready=False))) == [
        "torch has not been tried here yet: fab -H … deploy does so"
    ]
