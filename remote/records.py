"""The frozen types that flow between the rooms. Unknown is None."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from remote.agent.shared.build_plan import NO_BUILD, BuildKind, BuildPlan
from remote.agent.shared.gpu_choice import Gpu, GpuProcess, GpuReport
from remote.agent.shared.run_records import Asked, RunDetail
from remote.agent.shared.states import FINAL, LIVE, State

__all__ = [
    "FINAL",
    "LIVE",
    "Asked",
    "EnvironmentPlan",
    "FileEntry",
    "Gpu",
    "GpuProcess",
    "GpuReport",
    "Release",
    "Run",
    "RunDetail",
    "Settings",
]


@dataclass(frozen=True)
class SlurmSettings:
    """The keys under `remote.slurm:`: what every job asks for. Empty: what the cluster gives."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    # The time limit: 8h, 30m, 1h30m.
    time: str = ""
    # The GPUs: gpu:1, gpu:a100:2; none: no GPU. --gpus changes the number.
    gres: str = "gpu:1"
    constraint: str = ""
    nodes: str = ""
    cpus: str = ""
    mem: str = ""
    # More options of sbatch, one a line.
    extra: str = ""
    # Shell lines before the training: module load …
    preamble: str = ""
    # Where environments are built: on the login node, or in a job on such a node as trains.
    build: str = "login"


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
    # Where builds of torch come from that pip's own index has not: an address, or with -f before it
    # a page or folder of wheels; {build} in it becomes e.g. cu126. Empty: download.pytorch.org.
    torch_index: str = ""
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
    # Variables that every run is given, comma-separated: NAME takes the value here, @FILE a file of
    # them. Their values are secrets.
    env: str = ""
    # Data that a run needs, as `upload-data` has named it in data/ there, comma-separated.
    data: str = ""
    # Where results are kept here.
    dest: str = "results"
    # What ends a rented server, for fetch-results --then-shutdown; empty: shutdown -h now, by sudo
    # where one is not root.
    shutdown: str = ""
    # What people read: en, zh; auto: as the environment says (LANG and the like).
    language: str = "auto"
    # What holds a run there: tmux, setsid, slurm; auto takes tmux where it is, else setsid.
    launcher: str = "auto"
    slurm: SlurmSettings = field(default_factory=SlurmSettings)


class FileEntry(NamedTuple):
    """One file of a release, a row of its manifest: path with `/`, mode 0o644, 0o755 or 0o120000
    (symlink), hash of its bytes or of its target."""

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
    # Sent, but only the pointers of files that Git LFS has not brought here.
    pointers: tuple[str, ...] = ()
    # `git describe`-like text: branch, commit, dirty or not; empty without git.
    origin: str = ""

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True)
class Step:
    """What a deploy did, or why it did nothing, in one line."""

    changed: bool
    text: str


@dataclass(frozen=True)
class Lenient:
    """Made of what people's own programs have written: a part of another type is as if it were not
    there."""


@dataclass(frozen=True)
class Metrics(Lenient):
    """The newest values; losses are per image, accuracies fractions."""

    train_loss: float | None = None
    val_accuracy: float | None = None
    best_val_accuracy: float | None = None


@dataclass(frozen=True)
class Progress(Lenient):
    """progress.json, as the training writes it about itself."""

    phase: str = ""
    # Seconds since 1970, when it was written.
    time: float | None = None
    epoch: float | None = None
    max_epochs: float | None = None
    step: float | None = None
    total_steps: float | None = None
    images_per_s: float | None = None
    seconds_left: float | None = None
    metrics: Metrics = Metrics()

    @property
    def share(self) -> float | None:
        """Of the whole training, 0 to 1."""
        return self.step / self.total_steps if self.step is not None and self.total_steps else None


@dataclass(frozen=True)
class GpuUse(Lenient):
    """One row of gpu.csv."""

    utilization_percent: float | None = None
    memory_used_mib: float | None = None
    memory_total_mib: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class SummaryData(Lenient):
    kind: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class SummaryMacro(Lenient):
    """In the mean over the classes, each counting the same."""

    recall: float | None = None


@dataclass(frozen=True)
class Summary(Lenient):
    """summary.json, as the training writes it at its end."""

    test_accuracy: float | None = None
    epochs: float | None = None
    max_epochs: float | None = None
    # 0: the last one's weights were taken.
    best_epoch: float | None = None
    seconds: float | None = None
    data: SummaryData = SummaryData()
    # Some class has far more test images than another.
    uneven: bool = False
    macro: SummaryMacro = SummaryMacro()

    @property
    def beside_accuracy(self) -> str:
        """What stands beside the accuracy of an uneven set, which says little alone."""
        recall = self.macro.recall
        return f" (mean recall {100 * recall:.2f}%)" if self.uneven and recall is not None else ""


@dataclass(frozen=True)
class Run:
    """A run as the server tells it."""

    run: str
    state: State = "unknown"
    reason: str | None = None
    host: str | None = None
    release: str | None = None
    asked: Asked = field(default_factory=Asked)
    progress: Progress = Progress()
    summary: Summary = Summary()
    detail: RunDetail = field(default_factory=RunDetail)
    # Its directory on the server.
    path: str = ""
    # By the server's clock, when this was told.
    now: float | None = None

    @property
    def took_s(self) -> float | None:
        """From its start to its end, or so far."""
        began, until = self.detail.started, self.detail.ended or self.now or self.progress.time
        return None if began is None or until is None else max(0.0, until - began)

    @property
    def has_ended(self) -> bool:
        return self.state in FINAL

    @property
    def has_begun(self) -> bool:
        """Its training, in some attempt; else it has waited only."""
        return any(self.detail.starts)

    @property
    def goes_on(self) -> bool:
        """Here, on the host that was asked."""
        return self.state in ("queued", "running") and not self.detail.elsewhere


PlanKind = Literal["keep", "inspect-first", "resolve-first", BuildKind]


@dataclass(frozen=True)
class EnvironmentPlan:
    """What to do about the environment. `why` is shown as it is.

    kind: keep (nothing), inspect-first (call environment_inspect, and plan again with its answer),
    resolve-first (environment_resolve with `build`, likewise), or as-is, overlay, venv,
    conda: call environment_prepare with `build`.
    """

    kind: PlanKind
    why: str
    key: str | None = None
    build: BuildPlan = NO_BUILD
    # Packages whose extras the inspection is to look into.
    detail: Sequence[str] = ()
    # Why the build will fail, and what to do, where the requirements could not be resolved.
    doubt: Sequence[str] = ()
    # What the user should know beside it.
    notes: tuple[str, ...] = ()
