"""What the agent answers, one record for each of its operations. What lies above may rely on it,
whoever runs the server; facts.py has what is known of the server itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from remote.agent.shared.environment import Environment, Interpreter, Proof
from remote.agent.shared.gpu_choice import NOT_ASKED, GpuReport
from remote.agent.shared.states import State
from remote.link.answer import A, Answer, Owned
from remote.records import Run

# -- the server


@dataclass(frozen=True)
class Node:
    """Of a cluster. `state`, `gpus`, `used`, and whether its partition is `available` (up), are
    Slurm's words."""

    node: str
    partition: str = ""
    state: str = ""
    gpus: str = ""
    used: str = ""
    available: str = "up"


@dataclass(frozen=True)
class Nodes(Answer):
    OP = "slurm_nodes"

    nodes: tuple[Node, ...] = ()
    # Jobs that wait, by user.
    waiting: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Address:
    interface: str
    address: str
    prefix: int = 32
    mtu: int = 1500


@dataclass(frozen=True)
class Addresses(Answer):
    """The fastest interface first. `ssh`: where this login has come in."""

    OP = "network_addresses"

    addresses: tuple[Address, ...] = ()
    ssh: str | None = None


@dataclass(frozen=True)
class Listening(Answer):
    OP = "network_listen"

    port: int


@dataclass(frozen=True)
class Exchanged(Answer):
    """`failed`: at the connection, at who answers, or at much data that way or back."""

    OP = "network_connect"

    failed: Literal["port", "host", "out", "back"] | None = None
    why: str = ""


@dataclass(frozen=True)
class Reach(Answer):
    OP = "reach"

    reached: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Pretrained(Reach):
    OP = "pretrained"


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


@dataclass(frozen=True)
class PlannedShutdown:
    """By --shutdown-after. Times in seconds."""

    grace_s: float = 0.0
    unfetched_s: float = 0.0
    # Until then; None while a run goes on.
    left_s: float | None = None
    # Why not earlier: a run that goes on, or was not fetched.
    why: str = ""
    # Why not now, though its time has come.
    waiting: str | None = None
    # What came of the last try.
    problem: str | None = None


@dataclass(frozen=True)
class Kept(Answer):
    OP = "keep"

    # None: no shutdown was planned.
    cancelled: PlannedShutdown | None = None


# -- environments


@dataclass(frozen=True)
class Inspection(Answer):
    OP = "environment_inspect"

    interpreters: tuple[Interpreter, ...] = ()
    uv: str | None = None
    # The program, beside what the interpreters have.
    virtualenv: str | None = None
    # conda, mamba or micromamba.
    conda: str | None = None
    # pip there is set to ask no index.
    no_index: bool = False


@dataclass(frozen=True)
class Resolution(Answer):
    """What the requirements resolve to, by the first python that can have it all."""

    OP = "environment_resolve"

    python: str | None = None
    # Canonical name → version; None: it could not be told.
    packages: Mapping[str, str] | None = None
    # Lines of what needs other packages to be built.
    late: tuple[str, ...] = ()
    # Pythons that were tried before, why they can't have it, and what to do (where pip said it).
    failed: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class EnvironmentPrepare(Owned):
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
class DataPut(Owned):
    OP = "data_put"

    # Bytes; None: all of it was there, under this name.
    received: int | None = None
    # The files and bytes of another set that the name led to until now.
    before: tuple[int, int] | None = None


# -- runs


@dataclass(frozen=True)
class Runs(Answer):
    OP = "runs"

    runs: tuple[Run, ...] = ()
    shutdown: PlannedShutdown | None = None


@dataclass(frozen=True)
class Overview(Answer):
    """What is at work there now."""

    OP = "overview"

    gpus: GpuReport = NOT_ASKED
    # Those that have not ended.
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Started(Owned):
    """A run's launch. `again`: an earlier call has done it."""

    OP = "run_start"

    launched: str = ""
    note: str | None = None
    # Slurm's number of it.
    job: str | None = None
    again: bool = False


@dataclass(frozen=True)
class Joined(Started):
    OP = "run_join"


@dataclass(frozen=True)
class Resumed(Started):
    OP = "run_resume"

    attempt: int | None = None


@dataclass(frozen=True)
class Stopping(Owned):
    """`asked`: False where it had ended by then."""

    OP = "run_stop"

    run: str
    state: State = "unknown"
    asked: bool = False
    # Those of that name that go on.
    others: tuple[str, ...] = ()


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
class Cleaned(Owned):
    OP = "clean"

    items: tuple[CleanItem, ...] = ()
    kept: tuple[KeptRun, ...] = ()
    removed: bool = False


# -- fetching


@dataclass(frozen=True)
class FetchManifest(Owned):
    OP = "fetch_manifest"

    run: Run
    # Rows, for manifest.checked_manifest (they come before the answer) and manifest.parse_left.
    files: tuple[tuple[Any, ...], ...] = ()
    left: tuple[tuple[Any, ...], ...] = ()
    seen: str | None = None
    # What was fetched of it already, as a laptop has told: complete, narrowed.
    marked: str | None = None


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


# -- without anything to read


def done(op: str, base: type[A]) -> type[A]:
    """Of an operation that tells nothing but that it is done."""
    return type("Done", (base,), {"OP": op})


ListenedEnough = done("network_close", Answer)
ReleasePut = done("release_put", Owned)
ReleaseUse = done("release_use", Owned)
ContentPiece = done("content_piece", Answer)
Imported = done("run_import", Owned)
FetchRead = done("fetch_read", Answer)
FetchDone = done("fetch_done", Answer)
