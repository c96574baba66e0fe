"""What the agent tells of an operation while it works, one record for each kind. What is not right
is left out: it is news, and the answer at the end has it all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from remote.link.decoding import decode
from remote.link.link import OnEvent
from remote.records import GpuUse, Lenient, Progress

E = TypeVar("E")


@dataclass(frozen=True)
class RunNews:
    run: str
    state: str
    # What a queued run waits for.
    waiting: str | None = None
    # Whether it waits for somebody at its terminal.
    asking: bool = False


@dataclass(frozen=True)
class FollowEvent(Lenient):
    """What is None has not changed."""

    # Where in the log the bytes beside this begin.
    log: int | None = None
    progress: Progress | None = None
    state: RunNews | None = None
    # What the training shows in a line that it will write over.
    line: str | None = None
    # By its name, a curve's value for each epoch.
    curves: Mapping[str, tuple[float, ...]] | None = None
    # By nvidia-smi's index.
    gpu: Mapping[str, GpuUse] | None = None


@dataclass(frozen=True)
class Ready(Lenient):
    """For contents. `missing`: the hashes of those that it lacks, None: of all; `partial`: of how
    many it has so many bytes."""

    missing: tuple[str, ...] | None = None
    partial: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StepEvent(Lenient):
    """Of a long operation: what it does, for how long, and what the program that does it says."""

    step: str = ""
    line: str = ""
    seconds: float | None = None
    # Bytes that are there, of how many.
    amount: tuple[int, ...] = ()


def heard(kind: type[E], act: Callable[[E, bytes], None]) -> OnEvent:
    """`act` for events that are made records first."""
    return lambda event, blob: act(decode(kind, event), blob)
