"""What people are shown of a deploy and of a server's GPUs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from remote.agent.shared.gpu_choice import busy_reason, describe_mib, describe_process
from remote.deploy import proofs
from remote.deploy.deploy import Deployed, ask_facts
from remote.errors import RemoteError
from remote.link.answers import Nodes
from remote.link.facts import Facts
from remote.link.session import Session
from remote.records import Gpu, GpuReport
from remote.release.code_files import FETCHED_RUNS, how_to_send
from remote.screen.display import Display
from remote.screen.tables import Column, state_style
from remote.screen.text import show

GPU_COLUMNS = (
    Column("gpu", right=True),
    Column("name", least=8, spare=2),
    Column("state", style=state_style),
    Column("memory", right=True),
    Column("use", right=True),
    Column("power", spare=1, right=True),
    Column("by", least=16),
)


def show_steps(session: Session, deployed: Deployed, only_changes: bool = False) -> None:
    display = session.display
    # What was fetched is no code, and nobody looks for it there.
    left_out = [row for row in deployed.release.left_out if row[1] != FETCHED_RUNS]
    display.steps(session.host, only_changes)
    for path, reason in left_out[:8]:
        display.note(f"not sent: {path} ({reason})")
    if len(left_out) > 8:
        display.note(f"not sent: {len(left_out) - 8} more")
    if pointers := deployed.release.pointers:
        more = f" and {len(pointers) - 5} more" if pointers[5:] else ""
        display.note(
            f"warning: {', '.join(pointers[:5])}{more}: only Git LFS pointers, without their"
            " content; `git lfs pull` fetches it"
        )
    for text in how_to_send(left_out):
        display.note(text)


def show_summary(session: Session, deployed: Deployed) -> None:
    show_steps(session, deployed)
    system, root = deployed.facts.system, deployed.facts.root
    launcher = "tmux" if deployed.facts.tmux else "no tmux (setsid will do)"
    if session.project.settings.launcher == "slurm":
        launcher = "Slurm"
    session.display.line(
        f"server {show(system.host)}: {show(root.path)}, {describe_mib(root.free_mib or 0)} free,"
        f" python {show(system.python)}, {launcher}"
    )
    show_gpu_table(session.display, deployed.facts)


def deploy_json(session: Session, deployed: Deployed) -> dict[str, Any]:
    return {
        "host": session.host,
        "root": deployed.root,
        "release": deployed.release.tree,
        "environment": deployed.environment.key,
        "python": deployed.environment.python,
        "changed": deployed.changed,
        "steps": [step.text for step in deployed.steps],
        "left_out": [
            {"path": path, "reason": reason} for path, reason in deployed.release.left_out
        ],
        "gpus": gpu_json_rows(deployed.facts.gpus, deployed.facts.held),
        "requests": session.link.requests if session.link else None,
    }


def show_gpu_table(display: Display, facts: Facts) -> None:
    report = facts.gpus
    if not report.gpus:
        remedy = f" — {report.remedy}" if report.remedy else ""
        display.line(f"GPUs: none ({report.problem or 'nvidia-smi shows none'}){remedy}")
        return
    rows = [gpu_cells(item, busy_reason(item, facts.held)) for item in report.gpus]
    if "by" in display.table(GPU_COLUMNS, rows):
        for index, *_, users in rows:
            display.line(f"gpu {index}: {users or 'nobody'}")


def gpu_cells(item: Gpu, busy: str | None) -> list[object]:
    return [
        item.index,
        item.name,
        "busy" if busy else "free",
        memory_cell(item),
        None if item.utilization_percent is None else f"{item.utilization_percent}%",
        None if item.power_w is None else f"{item.power_w:.0f} W",
        "; ".join(map(describe_process, item.processes)) or busy,
    ]


def memory_cell(item: Gpu) -> str | None:
    """11.2 of 80.0 GiB"""
    used, total = item.memory_used_mib, item.memory_total_mib
    if used is None or total is None:
        return None if total is None else f"– of {total / 1024:.1f} GiB"
    return f"{used / 1024:.1f} of {total / 1024:.1f} GiB"


@dataclass(frozen=True)
class GpuLook:
    """`nodes`: of the partition, where Slurm is the launcher."""

    facts: Facts
    nodes: Nodes | None


def look_at_gpus(session: Session) -> GpuLook:
    settings, facts = session.project.settings, ask_facts(session)
    if settings.launcher != "slurm":
        return GpuLook(facts, None)
    return GpuLook(facts, session.ask(Nodes, partition=settings.slurm.partition))


def show_gpus(display: Display, look: GpuLook) -> None:
    """The answer of check-gpu."""
    report, held = look.facts.gpus, look.facts.held
    if look.nodes is not None:
        show_nodes(display, look.nodes)
    show_gpu_table(display, look.facts)
    if report.gpus:
        free = [str(item.index) for item in report.gpus if not busy_reason(item, held)]
        told = f"free: {', '.join(free)}" if free else "none is free"
        display.line(f"{told}; driver {show(report.driver_version)}")
    for line in proofs.describe_proofs(look.facts):
        display.line(line)


def show_nodes(display: Display, nodes: Nodes) -> None:
    """The partition's nodes with their GPUs, and who waits for them."""
    columns = [Column("node", least=8), Column("partition", least=8), Column("state", ours=True)]
    columns += [Column("gpus", least=12), Column("in use", least=8)]
    rows = [[n.node, n.partition, n.state, n.gpus, n.used.partition("(")[0]] for n in nodes.nodes]
    display.table(columns, rows)
    waiting = ", ".join(f"{user} {number}" for user, number in nodes.waiting.items())
    display.line(f"jobs that wait: {waiting or 'none'}")


def gpu_json(host: str, look: GpuLook | None, error: RemoteError | None) -> dict[str, Any]:
    if look is None:
        return {"host": host, "error": error.message if error else None, "gpus": None}
    facts, nodes = look.facts, look.nodes
    told = {} if nodes is None else {"cluster": dataclasses.asdict(nodes)}
    return told | {
        "host": host,
        "driver": facts.gpus.driver_version,
        "problem": facts.gpus.problem,
        "gpus": gpu_json_rows(facts.gpus, facts.held),
        "torch": proofs.describe_proofs(facts),
    }


def gpu_json_rows(report: GpuReport, held: dict[str, str]) -> list[dict[str, Any]]:
    return [gpu_row(item, held) for item in report.gpus]


def gpu_row(item: Gpu, held: dict[str, str]) -> dict[str, Any]:
    return {
        "index": item.index,
        "uuid": item.uuid,
        "name": item.name,
        "free": busy_reason(item, held) is None,
        "memory_total_mib": item.memory_total_mib,
        "memory_used_mib": item.memory_used_mib,
        "utilization_percent": item.utilization_percent,
        "power_w": item.power_w,
        "compute_capability": item.compute_capability,
        "users": [
            {"user": p.user, "pid": p.pid, "name": p.name, "memory_mib": p.memory_mib}
            for p in item.processes
        ],
    }
