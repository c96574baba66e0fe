"""The frozen types that flow between the rooms. Unknown is None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from remote.agent.shared.gpu_choice import Gpu, GpuProcess, GpuReport

__all__ = [
    "EnvironmentPlan",
    "FileEntry",
    "Gpu",
    "GpuProcess",
    "GpuReport",
    "Release",
    "Run",
    "Settings",
]


@dataclass(frozen=True)
class Settings:
    """The keys under `remote:` in fabric.yaml."""

    # Where the project lives on the server; ~ is the home there.
    root: str = "~/projects/{project}"
    # The project's name; by default the name of the project's directory.
    project: str = ""
    # An interpreter on the server that already has what is required; empty: one is looked for.
    python: str = ""
    # What is run in the run's directory; `python` is the environment's.
    command: str = "python -m trainer.train"
    # The file whose packages the server gets; "none" for nothing.
    requirements: str = "trainer/requirements.txt"
    # What comes back of all that a run wrote beside its code: patterns below its working directory,
    # comma-separated; empty: everything.
    results: str = ""
    # Where more than this is to be fetched, in MiB, a terminal is asked first. Nothing is left out
    # for its size.
    ask_above_mib: float = 5120.0
    # The recipe where --recipe is not given.
    recipe: str = "standard"
    # The torch build to install: auto, cpu, or an index name such as cu126.
    torch: str = "auto"
    # The longest wait, in seconds, for any single answer of the network.
    timeout_s: float = 30.0
    # For how long a login is kept for the next command, in seconds; 0: not at all.
    stay_s: float = 600.0
    # Who logs in: the system's ssh (openssh), paramiko, or auto: ssh where there is one.
    ssh: str = "auto"
    # A file larger than this is not sent, in MiB.
    max_file_mib: float = 50.0
    # Files sent although their names look like secrets, or although they are too large: patterns,
    # comma-separated.
    include: str = ""
    # Where results are kept here.
    dest: str = "results"
    # What ends a rented server, for fetch-results --then-shutdown; empty: shutdown -h now, by sudo
    # where one is not root.
    shutdown: str = ""


@dataclass(frozen=True)
class FileEntry:
    """One file of a release: path with `/`, mode 0o644, 0o755 or 0o120000 (symlink), hash of its
    bytes or of its target."""

    path: str
    mode: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Release:
    """The code as it stands: entries in order of path; `tree` is the hash over them all."""

    tree: str
    entries: tuple[FileEntry, ...]
    # Left out, with the reason, for the summary: (path, reason).
    left_out: tuple[tuple[str, str], ...] = ()
    # `git describe`-like text: branch, commit, dirty or not; empty without git.
    origin: str = ""

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True)
class Run:
    """A run as the server tells it."""

    run: str
    state: str
    reason: str | None
    host: str | None
    asked: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)
    # Its directory on the server.
    path: str = ""


@dataclass(frozen=True)
class EnvironmentPlan:
    """What to do about the environment. `why` is shown as it is.

    kind: keep (nothing), inspect-first (call environment_inspect, put its answer under
    facts["inspection"], plan again), or as-is, overlay, venv: call environment_prepare with `args`.
    """

    kind: str
    why: str
    key: str | None = None
    # What the environment kept is, as list_environments told it.
    environment: Mapping[str, Any] = field(default_factory=dict)
    # The plan as the agent takes it.
    args: Mapping[str, Any] = field(default_factory=dict)
    # What the user should know beside it.
    notes: tuple[str, ...] = ()
