"""What is known of a server: the machine, the project's root, GPUs, environments;
all of it in one answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remote.agent.shared.environment import Environment
from remote.agent.shared.gpu_choice import NOT_ASKED, Gpu, GpuReport, unusable_reason
from remote.link.answer import Owned
from remote.project.settings import listed
from remote.records import Settings


@dataclass(frozen=True)
class System:
    host: str | None = None
    system: str | None = None
    machine: str = "x86_64"
    cores: int | None = None
    # The version of the python that runs the agent.
    python: str | None = None
    boot_id: str | None = None
    # Its clock, in seconds since 1970.
    time: float | None = None
    # What the login sets: every run imports from there first.
    pythonpath: str | None = None
    # Processes end with the login that started them.
    kills_at_logout: bool = False


@dataclass(frozen=True)
class RootProblem:
    message: str
    remedy: str | None = None


@dataclass(frozen=True)
class Root:
    """The project's directory there, and the disk under it."""

    path: str
    problem: RootProblem | None = None
    free_mib: int | None = None
    inodes_free: int | None = None
    mount: str | None = None


@dataclass(frozen=True)
class Datasets:
    names: tuple[str, ...] = ()
    # Where CIFAR-10 lies.
    cifar10: str | None = None

    def lacking(self, settings: Settings) -> list[str]:
        """Of remote.data."""
        return [one for one in listed(settings.data) if one.partition("/")[0] not in self.names]


@dataclass(frozen=True)
class KnownRun:
    """A run as far as it matters to others."""

    run: str
    state: str | None = None
    gpus: tuple[str, ...] | None = None
    # It waits for GPUs, behind others.
    queue: bool = False


@dataclass(frozen=True)
class Facts(Owned):
    OP = "facts"

    root: Root
    system: System = System()
    tmux: str | None = None
    sbatch: str | None = None
    # Of a node, where the cluster was asked.
    gpus: GpuReport = NOT_ASKED
    environments: tuple[Environment, ...] = ()
    releases: tuple[Mapping[str, Any], ...] = ()
    current: str | None = None
    release_exists: bool = False
    # Contents of the release that are not there yet; None: not asked.
    missing: tuple[str, ...] | None = None
    # Contents of which so many bytes are there.
    partial: Mapping[str, int] = dataclasses.field(default_factory=dict)
    runs: tuple[KnownRun, ...] = ()
    datasets: Datasets = Datasets()
    # Where the path that was asked about lies there.
    data_path: str | None = None

    @property
    def usable(self) -> list[Gpu]:
        """GPUs that a run could ever have."""
        return [gpu for gpu in self.gpus.gpus if not unusable_reason(gpu)]

    @property
    def live(self) -> list[KnownRun]:
        """Runs that have not ended."""
        return [run for run in self.runs if run.state in ("queued", "running")]

    @property
    def waiting(self) -> int:
        """Runs in the server's queue for GPUs."""
        return sum(run.state == "queued" and run.queue for run in self.runs)

    @property
    def held(self) -> dict[str, str]:
        """GPU → run, for the runs that have not ended."""
        return {uuid: run.run for run in self.live for uuid in run.gpus or ()}
