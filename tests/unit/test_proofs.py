"""Whether torch is known to run on the server's GPUs, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from remote.agent.shared.environment import Environment, Proof
from remote.deploy.environment import KEPT
from remote.deploy.proofs import Ready, describe_environment, describe_proofs, proof_needed
from remote.link.decoding import decode
from remote.link.facts import Facts
from remote.records import EnvironmentPlan
from tests.support.interpreters import NO_GPU, SYSTEM, gpu_facts, record

PROOF = {
    "ok": True,
    "gpu": True,
    "driver": "550.54.15",
    "gpu_uuids": ["GPU-1"],
    "boot_id": "boot",
    "host": "box",
    "reason": None,
}


def made(**change: Any) -> Environment:
    return decode(Environment, record(**change))


def needed(environment: Mapping[str, Any], gpu: Mapping[str, Any] | None = None) -> str | None:
    facts = facts_of(environment, gpu)
    return proof_needed(facts.environments[0], facts)


def facts_of(environment: Mapping[str, Any], gpu: Mapping[str, Any] | None = None) -> Facts:
    told = {"system": SYSTEM, "environments": [environment], "gpus": gpu or gpu_facts()}
    return decode(Facts, told | {"root": {"path": "/r"}})


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
    assert needed(record(proofs=[PROOF | change])) == reason


def test_other_hosts_of_a_shared_home_keep_their_proofs() -> None:
    environment = record(
        proofs=[PROOF, PROOF | {"host": "other", "boot_id": "b2", "driver": "535.1"}]
    )
    assert needed(environment) is None


def test_what_needs_no_torch_needs_no_proof() -> None:
    assert needed(record(needs_torch=False)) is None
    assert needed(record()) == "not tried yet"


def test_a_server_without_gpu_is_proved_once_too() -> None:
    environment = record(proofs=[PROOF | {"driver": None, "gpu_uuids": [], "gpu": False}])
    assert needed(environment, NO_GPU) is None


def test_the_summary_says_what_was_done_or_why_nothing() -> None:
    proof = decode(Proof, PROOF)
    kept = describe_environment(EnvironmentPlan("keep", KEPT), Ready(made(), proof))
    assert (
        kept == f"{KEPT} (python 3.11.7, torch 2.5.1+cu124, CUDA 12.4); GPU works (the proof still"
        " holds)"
    )
    built = describe_environment(
        EnvironmentPlan("venv", "why"),
        Ready(
            made(base="/usr/bin/python3", seconds=92.3, installer="uv"),
            proof,
            made=True,
            proved=True,
        ),
    )
    assert (
        built
        == "environment built: a venv of /usr/bin/python3 in 92 s with uv (python 3.11.7, torch"
        " 2.5.1+cu124, CUDA 12.4); GPU works (tried just now)"
    )
    no_gpu = Proof(ok=True, gpu=False, reason="no GPU: y")
    warned = describe_environment(
        EnvironmentPlan("as-is", "why"), Ready(made(base="/x", names=["torch"]), no_gpu, made=True)
    )
    assert warned.startswith("environment: /x is used as it is (") and warned.endswith(
        "; warning: no GPU: y"
    )
    other = describe_environment(
        EnvironmentPlan("venv", "why"), Ready(made(needs_torch=False, torch={}), None)
    )
    assert other == "environment ready: it is there already (python 3.11.7); no torch is required"


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
    assert describe_proofs(facts_of(record(needs_torch=False))) == ["no environment needs torch"]
    assert describe_proofs(facts_of(record(ready=False))) == [
        "torch has not been tried here yet: fab -H … deploy does so"
    ]
