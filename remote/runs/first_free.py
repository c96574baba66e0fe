"""`train --first-free`: of several servers the one that can start the run now, chosen by looking at
all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from remote.agent.shared.gpu_choice import choose_gpus, unusable_reason
from remote.link.facts import Facts
from remote.link.session import Project
from remote.project.release import build_release
from remote.runs.request import Pending, TrainOptions, parse_request


@dataclass(frozen=True)
class Look:
    """A server that was looked at. `free`: GPUs that nobody uses; `usable`: all that could be;
    `waiting`: runs in its queue."""

    host: str
    free: int
    usable: int
    waiting: int
    memory_mib: int

    @property
    def text(self) -> str:
        queue = f", {self.waiting} runs wait" if self.waiting else ""
        return f"{self.host}: {self.free} of {self.usable} GPUs free{queue}"


def look_at(host: str, facts: Facts) -> Look:
    gpus = facts.gpus.gpus
    free = choose_gpus(gpus, "auto", limit=0, held=facts.held).gpus
    waiting = sum(run.state == "queued" and run.queue for run in facts.runs)
    memory = min((gpu.memory_total_mib or 0 for gpu in free), default=0)
    usable = sum(not unusable_reason(gpu) for gpu in gpus)
    return Look(host, 0 if waiting else len(free), usable, waiting, memory)


def first_free(hosts: Mapping[str, Facts], wanted: int) -> tuple[str, str]:
    """The host, and why it is that one. Enough free GPUs come first, of these the larger memory;
    where no host has them, the one that could have them and where the fewest wait; without GPUs
    anywhere the one with the fewest runs."""
    looks = [look_at(host, facts) for host, facts in hosts.items()]
    seen = "; ".join(look.text for look in looks)
    able = [look for look in looks if look.free >= wanted]
    if able:
        best = max(able, key=lambda look: (look.memory_mib, look.free))
        return best.host, f"{best.host} has {best.free} free ({seen})"
    could = [look for look in looks if look.usable >= wanted]
    if could:
        best = min(could, key=lambda look: (look.waiting, -look.usable))
        return best.host, f"none is free; the queue of {best.host} is the shortest ({seen})"
    quiet = min(hosts, key=lambda host: live_runs(hosts[host]))
    return quiet, f"no server has {wanted} GPUs; {quiet} has the fewest runs ({seen})"


def live_runs(facts: Facts) -> int:
    return sum(run.state in ("queued", "running") for run in facts.runs)


def cut_off_at(project: Project, hosts: Sequence[str], options: TrainOptions) -> str | None:
    """The host where an earlier call of the same command was cut off: it is the same start, and
    must not become a second one elsewhere."""
    settings = project.settings
    release = build_release(
        project.directory, settings.max_file_mib, settings.include, settings.dest
    )
    request = parse_request(project, options)
    return next(
        (host for host in hosts if Pending(project, host, request, release.tree).is_remembered()),
        None,
    )
