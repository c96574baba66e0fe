"""What the agent answers, one record for each of its operations: checked once, where it arrives.
What lies above may rely on it, whoever runs the server."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from remote.agent.shared.gpu_choice import GpuReport, parse_gpus
from remote.agent.shared.states import State
from remote.errors import ProtocolError
from remote.link.decoding import WrongForm, decode
from remote.records import Run


@dataclass(frozen=True)
class Answer:
    """`OP` is the operation's name."""

    OP: ClassVar[str]


A = TypeVar("A", bound=Answer)


def read_answer(kind: type[A], result: object) -> A:
    """Raises ProtocolError that names the part which has the wrong form."""
    try:
        return decode(kind, result)
    except WrongForm as wrong:
        place = f" at {wrong}" if str(wrong) else ""
        raise ProtocolError(
            f"the server's answer to {kind.OP!r} has the wrong form{place}"
        ) from None


# -- the server


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


@dataclass(frozen=True)
class Torch:
    """A torch that is installed: its version, and the CUDA or HIP that it was built with."""

    version: str | None = None
    cuda: str | None = None
    hip: str | None = None


@dataclass(frozen=True)
class Proof:
    """torch was tried on the GPUs, at one boot of one host."""

    ok: bool = False
    # Whether a GPU was computed on; None: the requirements name no torch.
    gpu: bool | None = None
    reason: str | None = None
    driver: str | None = None
    gpu_uuids: tuple[str, ...] = ()
    boot_id: str | None = None
    host: str | None = None


@dataclass(frozen=True)
class Environment:
    """One that was made there, or is being made."""

    key: str
    ready: bool = False
    # False: what it was made from has changed, as `changed` says.
    valid: bool = False
    building: bool = False
    changed: str | None = None
    kind: str = ""
    python: str = ""
    prefix: str = ""
    base: str | None = None
    version: str | None = None
    installer: str | None = None
    torch: Torch = Torch()
    needs_torch: bool = False
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    proofs: tuple[Proof, ...] = ()
    names: tuple[str, ...] = ()
    # Canonical name → branch or tag, and the commit that it stood for.
    commits: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # When, in seconds since 1970, and how long it took.
    built: float = 0.0
    seconds: float | None = None
    requirements_hash: str = ""
    wanted: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Interpreter:
    """A python there. `packages` and what follows are known after an inspection alone."""

    path: str = ""
    problem: str | None = None
    version: str | None = None
    version_info: tuple[int, ...] = ()
    # Named by remote.python.
    configured: bool = False
    has_pip: bool = False
    has_venv: bool = False
    has_virtualenv: bool = False
    is_venv: bool = False
    is_conda: bool = False
    sites: tuple[str, ...] = ()
    markers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    requires: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    urls: Mapping[str, str] = dataclasses.field(default_factory=dict)
    torch: Torch = Torch()


@dataclass(frozen=True)
class KnownRun:
    """A run as far as it matters to others."""

    run: str
    state: str | None = None
    gpus: tuple[str, ...] | None = None
    # It waits for GPUs, behind others.
    queue: bool = False


@dataclass(frozen=True)
class Facts(Answer):
    OP = "facts"

    root: Root
    system: System = System()
    tmux: str | None = None
    sbatch: str | None = None
    # What nvidia-smi said, for gpu_choice.parse_gpus.
    gpu: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environments: tuple[Environment, ...] = ()
    interpreters: tuple[Interpreter, ...] = ()
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

    @functools.cached_property
    def gpus(self) -> GpuReport:
        return parse_gpus(self.gpu)

    @property
    def prover(self) -> tuple[str | None, str | None]:
        """Boot and name of the host whose GPUs these are: a node, where the cluster was asked."""
        node = self.gpu.get("node") or {}
        here = self.system.boot_id, self.system.host
        return (node.get("boot_id"), node.get("host")) if node else here

    @property
    def held(self) -> dict[str, str]:
        """GPU → run, for the runs that have not ended."""
        live = [run for run in self.runs if run.state in ("queued", "running")]
        return {uuid: run.run for run in live for uuid in run.gpus or ()}


@dataclass(frozen=True)
class Node:
    """Of a cluster. `gpus` and `used` are Slurm's words."""

    node: str
    partition: str = ""
    state: str = ""
    gpus: str = ""
    used: str = ""


@dataclass(frozen=True)
class Nodes(Answer):
    OP = "slurm_nodes"

    nodes: tuple[Node, ...] = ()
    # Jobs that wait, by user.
    waiting: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Reach(Answer):
    OP = "reach"

    reached: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class KeyAdd(Answer):
    OP = "key_add"

    added: bool = False
    path: str | None = None


@dataclass(frozen=True)
class Shutdown(Answer):
    OP = "shutdown"

    command: str = ""
    # Who else is at work there.
    others: tuple[str, ...] = ()


# -- environments


@dataclass(frozen=True)
class Inspection(Answer):
    OP = "environment_inspect"

    interpreters: tuple[Interpreter, ...] = ()
    uv: str | None = None
    # conda, mamba or micromamba.
    conda: str | None = None
    # pip's settings, without passwords.
    pip_config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    free_mib: int | None = None


@dataclass(frozen=True)
class Resolution(Answer):
    """What the requirements bring along: of the first python that can have it all."""

    OP = "environment_resolve"

    python: str | None = None
    # Canonical name → version; None: it could not be told.
    packages: Mapping[str, str] | None = None
    # Lines of what needs other packages to be built.
    late: tuple[str, ...] = ()
    # Pythons that were tried before, and why they can't have it.
    failed: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class EnvironmentPrepare(Answer):
    OP = "environment_prepare"

    environment: Environment
    # False: it was there already.
    built: bool = False


@dataclass(frozen=True)
class EnvironmentProve(Answer):
    OP = "environment_prove"

    proof: Proof


# -- releases and data


@dataclass(frozen=True)
class ReleaseMissing(Answer):
    OP = "release_missing"

    missing: tuple[str, ...]
    partial: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class ReleasePut(Answer):
    OP = "release_put"


@dataclass(frozen=True)
class ReleaseUse(Answer):
    OP = "release_use"


@dataclass(frozen=True)
class DataMissing(Answer):
    OP = "data_missing"

    # All of it is there, under this name.
    named: bool = False
    # None: everything.
    missing: tuple[str, ...] | None = None
    partial: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class DataPut(Answer):
    OP = "data_put"

    received: int = 0


# -- runs


@dataclass(frozen=True)
class Runs(Answer):
    OP = "runs"

    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Overview(Answer):
    """What is at work there now."""

    OP = "overview"

    # What nvidia-smi said, for gpu_choice.parse_gpus.
    gpu: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Those that have not ended.
    runs: tuple[Run, ...] = ()

    @functools.cached_property
    def gpus(self) -> GpuReport:
        return parse_gpus(self.gpu)


@dataclass(frozen=True)
class Started(Answer):
    """A run's launch. `again`: an earlier call has done it."""

    OP = "run_start"

    launched: str = ""
    note: str | None = None
    # Slurm's number of it.
    job: str | None = None
    again: bool = False


@dataclass(frozen=True)
class Resumed(Answer):
    OP = "run_resume"

    launched: str = ""
    note: str | None = None
    # Slurm's number of it.
    job: str | None = None
    again: bool = False
    attempt: int | None = None


@dataclass(frozen=True)
class Imported(Answer):
    OP = "run_import"


@dataclass(frozen=True)
class Stopping(Answer):
    """`asked`: False where it had ended by then."""

    OP = "run_stop"

    run: str
    state: State = "unknown"
    asked: bool = False


@dataclass(frozen=True)
class Attach(Answer):
    """`line`: for the login shell there."""

    OP = "run_attach"

    line: str
    launched: str = ""


@dataclass(frozen=True)
class Followed(Answer):
    OP = "follow"

    described: Run
    started: bool = False
    # It had to be left before what was waited for.
    late: bool = False


@dataclass(frozen=True)
class Measured:
    test_accuracy: float | None = None
    test_images: int | None = None
    data_sha256: str | None = None


@dataclass(frozen=True)
class Evaluated(Answer):
    OP = "evaluate"

    told: Measured


@dataclass(frozen=True)
class CleanItem:
    kind: str = ""
    name: str = ""
    bytes: int = 0
    why: str = ""


@dataclass(frozen=True)
class KeptRun:
    run: str
    state: str | None = None
    why: str | None = None


@dataclass(frozen=True)
class Cleaned(Answer):
    OP = "clean"

    items: tuple[CleanItem, ...] = ()
    kept: tuple[KeptRun, ...] = ()
    removed: bool = False


# -- fetching


@dataclass(frozen=True)
class FetchManifest(Answer):
    OP = "fetch_manifest"

    run: Run
    # Rows, for manifest.checked_manifest and manifest.parse_left.
    files: tuple[tuple[Any, ...], ...] = ()
    left: tuple[tuple[Any, ...], ...] = ()
    seen: str | None = None
    # What was fetched of it already, as a laptop has told: complete, narrowed.
    marked: str | None = None


@dataclass(frozen=True)
class FetchRead(Answer):
    OP = "fetch_read"


@dataclass(frozen=True)
class FetchLane(Answer):
    OP = "fetch_lane"

    # The file has become shorter.
    short: bool = False


@dataclass(frozen=True)
class FetchHash(Answer):
    OP = "fetch_hash"

    # None: it is gone, or shorter.
    sha256: str | None = None


@dataclass(frozen=True)
class FetchDone(Answer):
    OP = "fetch_done"
