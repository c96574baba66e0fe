"""The proof of an environment on the GPU: whether it still holds, and how it and the environment
are shown. Pure.

A proof holds for one driver, one set of GPUs and one boot of one host.
"""

from __future__ import annotations

from dataclasses import dataclass

from remote.agent.shared.environment import Environment, Proof
from remote.link.facts import Facts
from remote.records import EnvironmentPlan
from remote.screen.text import one_line


@dataclass(frozen=True)
class Ready:
    """An environment that stands, with its proof; what was `made` and `proved` just now."""

    environment: Environment
    proof: Proof | None
    made: bool = False
    proved: bool = False


def proof_of(environment: Environment, facts: Facts) -> Proof | None:
    """The newest proof that was made on this host in this boot."""
    here = facts.gpus.boot_id, facts.gpus.host
    return next(
        (proof for proof in reversed(environment.proofs) if (proof.boot_id, proof.host) == here),
        None,
    )


def proof_needed(environment: Environment, facts: Facts) -> str | None:
    """Why torch must be tried on the GPU (again); None while the proof holds, or where nothing
    needs torch."""
    if not environment.needs_torch:
        return None
    proof, report = proof_of(environment, facts), facts.gpus
    if proof is None:
        return "not tried since the server started" if environment.proofs else "not tried yet"
    if proof.driver != report.driver_version:
        return (
            f"the driver changed from {one_line(proof.driver or '–', 40)} to"
            f" {report.driver_version or '–'}"
        )
    if sorted(proof.gpu_uuids) != sorted(item.uuid for item in report.gpus):
        return "the GPUs changed"
    if not proof.ok:
        return f"the last trial failed ({one_line(proof.reason or 'no reason given', 120)})"
    return None


def describe_environment(plan: EnvironmentPlan, ready: Ready) -> str:
    """One line for the summary."""
    made = ready.environment
    if plan.kind == "keep":
        done = plan.why
    elif not ready.made:
        done = "environment ready: it is there already"
    elif plan.kind == "as-is":
        done = f"environment: {made.base} is used as it is" + (
            "" if made.names else ": no packages are asked for"
        )
    else:
        kinds = {
            "overlay": f"a venv on top of {made.base}",
            "venv": f"a venv of {made.base}",
            "conda": f"made by {made.base}",
        }
        done = f"environment built: {kinds[plan.kind]}"
        if made.seconds is not None:
            done += f" in {made.seconds:.0f} s"
        if made.installer not in (None, "none"):
            done += f" with {made.installer}"
    return f"{done} ({describe_versions(made)}{_commits(made)}); {_describe_proof(ready)}"


def _commits(made: Environment) -> str:
    """What a branch or a tag stood for when it was installed."""
    known = [(name, *origin) for name, origin in made.commits.items() if len(origin) == 2]
    return "".join(
        f", {name}@{asked} is commit {commit[:10]}"
        for name, asked, commit in known
        if asked != commit
    )


def describe_versions(made: Environment) -> str:
    torch = made.torch
    parts = [f"python {made.version or '–'}"]
    if made.needs_torch or torch.version:
        runtime = f"CUDA {torch.cuda}" if torch.cuda else "ROCm" if torch.hip else "CPU build"
        parts += [f"torch {torch.version or '–'}", runtime]
    return ", ".join(parts)


def _describe_proof(ready: Ready) -> str:
    if not ready.environment.needs_torch:
        return "no torch is required"
    proof = ready.proof
    if proof is None:
        return "the GPU was not tried"
    reason = one_line(proof.reason or "", 200)
    if proof.ok and proof.gpu:
        how = "tried just now" if ready.proved else "the proof still holds"
        return f"GPU works ({how})" + (f": {reason}" if reason else "")
    return f"warning: {reason or 'the GPU was not proved'}"


def describe_proofs(facts: Facts) -> list[str]:
    """For check-gpu: what each environment's torch sees, from the proofs that are kept. Nothing is
    tried for it."""
    ready = [made for made in facts.environments if made.ready]
    if not ready:
        return ["torch has not been tried here yet: fab -H … deploy does so"]
    with_torch = [made for made in ready if made.needs_torch]
    return [describe_proof(made, facts) for made in with_torch] or ["no environment needs torch"]


def describe_proof(made: Environment, facts: Facts) -> str:
    name = f"environment {made.key[:8]} ({describe_versions(made)})"
    changed = None if made.valid else made.changed or "it changed"
    again = changed or proof_needed(made, facts)
    if again is not None:
        return f"{name}: the next deploy tries it: {again}"
    return f"{name}: {_describe_proof(Ready(made, proof_of(made, facts)))}"
