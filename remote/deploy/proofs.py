"""The proof of an environment on the GPU: whether it still holds, and how it and the environment
are shown. Pure.

A proof holds for one driver, one set of GPUs and one boot of one host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remote.deploy import gpus
from remote.records import EnvironmentPlan, GpuReport
from remote.screen.text import one_line

Record = Mapping[str, Any]


def proof_of(environment: Record, facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The newest proof that was made on this host in this boot."""
    system = facts.get("system") or {}
    here = [
        proof
        for proof in environment.get("proofs") or ()
        if proof.get("boot_id") == system.get("boot_id") and proof.get("host") == system.get("host")
    ]
    return here[-1] if here else None


def proof_needed(environment: Record, facts: Mapping[str, Any], report: GpuReport) -> str | None:
    """Why torch must be tried on the GPU (again); None while the proof holds, or where nothing
    needs torch."""
    if not environment.get("needs_torch"):
        return None
    proof = proof_of(environment, facts)
    if proof is None:
        return (
            "not tried since the server started" if environment.get("proofs") else "not tried yet"
        )
    if proof.get("driver") != report.driver_version:
        return (
            f"the driver changed from {proof.get('driver') or '–'} to"
            f" {report.driver_version or '–'}"
        )
    if sorted(proof.get("gpu_uuids") or ()) != sorted(item.uuid for item in report.gpus):
        return "the GPUs changed"
    if not proof.get("ok"):
        return (
            "the last trial failed"
            f" ({one_line(str(proof.get('reason') or 'no reason given'), 120)})"
        )
    return None


def describe_environment(plan: EnvironmentPlan, ready: Record) -> str:
    """One line for the summary. `ready` is the record, with `proof`, and `made` and `proved` where
    they were done just now."""
    if plan.kind == "keep":
        done = plan.why
    elif not ready.get("made", True):
        done = "environment ready: somebody else's deploy has built it"
    elif plan.kind == "as-is":
        done = f"environment: {ready.get('base')} is used as it is" + (
            "" if ready.get("names") else ": no packages are asked for"
        )
    else:
        done = (
            f"environment built: a venv {'on top of' if plan.kind == 'overlay' else 'of'}"
            f" {ready.get('base')}"
        )
        if isinstance(ready.get("seconds"), (int, float)):
            done += f" in {ready['seconds']:.0f} s"
        if ready.get("installer") not in (None, "none"):
            done += f" with {ready['installer']}"
    return f"{done} ({describe_versions(ready)}); {_describe_proof(ready)}"


def describe_versions(ready: Record) -> str:
    torch = ready.get("torch") or {}
    parts = [f"python {ready.get('version') or '–'}"]
    if ready.get("needs_torch") or torch:
        runtime = (
            f"CUDA {torch['cuda']}"
            if torch.get("cuda")
            else "ROCm"
            if torch.get("hip")
            else "CPU build"
        )
        parts += [f"torch {torch.get('version') or '–'}", runtime]
    return ", ".join(parts)


def _describe_proof(ready: Record) -> str:
    if not ready.get("needs_torch"):
        return "no torch is required"
    proof = ready.get("proof")
    if not isinstance(proof, Mapping):
        return "the GPU was not tried"
    reason = one_line(str(proof.get("reason") or ""), 200)
    if proof.get("ok") and proof.get("gpu"):
        how = "tried just now" if ready.get("proved") else "the proof still holds"
        return f"GPU works ({how})" + (f": {reason}" if reason else "")
    return f"warning: {reason or 'the GPU was not proved'}"


def describe_proofs(answer: Mapping[str, Any]) -> list[str]:
    """For check-gpu: what each environment's torch sees, from the proofs that are kept. Nothing is
    tried for it."""
    report = gpus.parse_gpus(answer.get("gpu") or {})
    lines = []
    for record in answer.get("environments") or ():
        if not record.get("ready") or not record.get("needs_torch"):
            continue
        name = f"environment {str(record.get('key'))[:8]} ({describe_versions(record)})"
        again = (
            str(record.get("changed") or "it changed")
            if not record.get("valid")
            else proof_needed(record, answer, report)
        )
        if again is not None:
            lines.append(f"{name}: the next deploy tries it: {again}")
        else:
            lines.append(f"{name}: {_describe_proof(dict(record, proof=proof_of(record, answer)))}")
    return lines or ["torch has not been tried here yet: fab -H … deploy does so"]
