"""`train --first-free`: of several servers the one that can start the run now, chosen by looking at
all of them at once; of a cluster, at what Slurm says of its partition."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from remote.agent.shared.gpu_choice import choose_gpus
from remote.link.answers import Node, Nodes
from remote.link.facts import Facts
from remote.link.session import Project, Session
from remote.project.options import TrainOptions
from remote.project.slurm import gres_of
from remote.runs.request import Pending, parse_request

UP = ("idle", "mixed", "allocated", "completing", "planned")
"""States of a node, in Slurm's words, in which jobs go there."""


@dataclass(frozen=True)
class Look:
    """A server that was looked at. `free`: GPUs that a run can have now; `usable`: that it could
    ever have; `waiting`: runs in its queue, None: it is Slurm's, and was not asked about; `live`:
    runs of the project; `seen`: for people."""

    host: str
    seen: str
    free: int
    usable: int
    waiting: int | None = 0
    memory_mib: int = 0
    live: int = 0


def look_at(session: Session) -> Look:
    """One answer of a server; where the launcher is Slurm and the server has it, one question to
    its controller, too."""
    settings = session.project.settings
    facts = session.ask(Facts)
    if settings.launcher != "slurm":
        return look_at_server(session.host, facts)
    if facts.sbatch is None:
        return look_at_server(session.host, facts, " (no Slurm)")
    nodes = session.ask(Nodes, partition=settings.slurm.partition, waiting=False)
    gres, live = gres_of(settings.slurm, None), len(facts.live)
    return look_at_cluster(session.host, nodes.nodes, gres, live)


def look_at_server(host: str, facts: Facts, remark: str = "") -> Look:
    gpus = facts.gpus.gpus
    free = choose_gpus(gpus, "auto", limit=0, held=facts.held).gpus
    waiting, usable = facts.waiting, len(facts.usable)
    memory = min((gpu.memory_total_mib or 0 for gpu in free), default=0)
    able, queue = 0 if waiting else len(free), f", {waiting} waiting" if waiting else ""
    seen = f"{host}: {able} of {usable} GPUs free{queue}{remark}"
    return Look(host, seen, able, usable, waiting, memory, len(facts.live))


def look_at_cluster(host: str, nodes: Sequence[Node], gres: str, live: int = 0) -> Look:
    """`gres`: what a run asks for, which one node must have."""
    kind = re.sub(r":\d+$", "", gres or "gpu")
    rows = {}
    for node in nodes:
        plain = re.sub(r"[~#!%$@^+-]+$", "", node.state)
        if plain in UP and node.available == "up":
            there, used = count_gres(node.gpus, kind), count_gres(node.used, kind)
            rows[node.node] = there, there - used
    idle, there = (sum(row[place] for row in rows.values()) for place in (1, 0))
    free, usable = (max((row[place] for row in rows.values()), default=0) for place in (1, 0))
    together = f", {free} on one node" if free < idle else ""
    seen = f"{host}: {idle} of {there} GPUs idle in Slurm{together}"
    return Look(host, seen, free, usable, None, live=live)


def count_gres(text: str, kind: str) -> int:
    """GPUs in `gpu:a100:4(S:0-1),gpu:v100:2`, of `gpu:a100`, or with `gpu` of every kind."""
    found = re.findall(r"(?:^|,)([\w:.-]+?):(\d+)(?:\([^)]*\))?(?=,|$)", text)
    return sum(int(n) for name, n in found if name == kind or name.startswith(f"{kind}:"))


def wanted_gpus(project: Project, options: TrainOptions) -> int:
    asked = re.search(r":(\d+)$", project.settings.slurm.gres)
    of_slurm = int(asked[1]) if asked and project.settings.launcher == "slurm" else 1
    return options.gpus or of_slurm


def first_free(looks: Sequence[Look], wanted: int) -> tuple[Look, str]:
    """The host, and why it is that one. Enough free GPUs come first, of these the larger memory;
    where no host has them, the one that could have them and where the fewest wait, a cluster
    before those where somebody does; without GPUs anywhere the one with the fewest runs."""
    seen = "; ".join(look.seen for look in looks)
    able = [look for look in looks if look.free >= wanted]
    if able:
        best = max(able, key=lambda look: (look.memory_mib, look.free))
        return best, f"{best.host} has {best.free} free ({seen})"
    could = [look for look in looks if look.usable >= wanted]
    if could:
        best = min(could, key=lambda look: (queue_of(look), -look.usable))
        if best.waiting is None:
            return best, f"no GPU is free; the run waits in Slurm's queue on {best.host} ({seen})"
        return best, f"no GPU is free; the queue of {best.host} is the shortest ({seen})"
    best = min(looks, key=lambda look: look.live)
    several = "s" * (wanted != 1)
    return best, f"no server has {wanted} GPU{several}; {best.host} has the fewest runs ({seen})"


def queue_of(look: Look) -> float:
    return 0.5 if look.waiting is None else look.waiting


def cut_off_at(project: Project, hosts: Sequence[str], options: TrainOptions) -> str | None:
    """The host where an earlier call of the same command was cut off: it is the same start, and
    must not become a second one elsewhere."""
    tree, request = project.build_release().tree, parse_request(project, options)
    for host in hosts:
        if Pending(project, host, request, tree).is_remembered():
            return host
    return None
