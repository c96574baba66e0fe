"""A sweep over hosts with fake GPUs, through the hosts' own queues, and what its runs themselves
tell of it: which GPU each has seen, from when to when.

queues = make_queues(make_server, tmp_path, hosts=4, gpus=4)
queues.sweep(100); queues.wait_for_all(100); queues.held_at_once(); queues.idle()
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.loopback import LoopbackServer
from tests.support.faults import Done, Lab, wait_until
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.several import Several
from tests.support.sshd import MakeServer

NAMES = "abcdefgh"
# One to two seconds, by the number of the point. Two starts of one run would leave two lines.
TELLS = """
cd "$REMOTE_RUN_DIR"; echo "$CUDA_VISIBLE_DEVICES $(date +%s.%N)" >> began
sleep 1.$(($2 * 37 % 10)); date +%s.%N >> over
"""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Span:
    """A run's own time on its GPU; `since`: when it began to wait there. Seconds since 1970."""

    run: str
    gpu: str
    since: float
    began: float
    over: float


@dataclass
class Queues(Several):
    def show(self, gpus: Mapping[str, Sequence[FakeGpu]]) -> None:
        for name, server in zip(NAMES, self.servers, strict=False):
            write_nvidia_smi(Path(server.path) / "nvidia-smi", gpus[name])

    def sweep(self, points: int) -> Done:
        grid = ["point=" + ",".join(map(str, range(points)))]
        words = ("--point", "{point}")
        return self.on(NAMES, "sweep", words, grid=grid, name="many")

    def states(self) -> list[str]:
        told = self.on(NAMES, "status", sweep="many", json=True)
        return [str(row["state"]) for row in json.loads(told.out)["points"]]

    def wait_for_all(self, points: int, timeout_s: float = 300.0) -> None:
        wait_until(
            lambda: sum(len(list(runs.glob("*/over"))) for runs in self.runs) >= points, timeout_s
        )
        wait_until(lambda: self.states() == ["finished"] * points)

    @property
    def runs(self) -> list[Path]:
        return [lab.root / "runs" for lab in self.labs]

    def spans(self) -> list[list[Span]]:
        """By host. Fails where a run was started twice."""
        return [[span_of(run) for run in sorted(runs.glob("2*"))] for runs in self.runs]


def make_queues(
    make_server: MakeServer, directory: Path, hosts: int, env: dict[str, str]
) -> Queues:
    def server() -> LoopbackServer:
        return make_server(env=env)

    queues = Queues(server(), directory, files={"train.sh": TELLS})
    queues.others = [Lab(server(), directory / name) for name in NAMES[1:hosts]]
    return queues


def span_of(run: Path) -> Span:
    gpu, began = (run / "began").read_text().split()
    (over,) = (run / "over").read_text().split()
    state: dict[str, Any] = json.loads((run / "state.json").read_text())
    return Span(run.name, gpu, float(state["since"]), float(began), float(over))


def gaps(host: Sequence[Span], free_at: float = 0.0) -> list[float]:
    """Seconds from one run's end on a GPU to the next one's begin there, of all GPUs of a host;
    negative: two had it at once. A GPU's first gap begins when it is free and a run waits."""
    found = []
    for _, group in itertools.groupby(sorted(host, key=place), key=lambda span: span.gpu):
        own = list(group)
        waited = max(free_at, min(span.since for span in host))
        ends = [waited, *(span.over for span in own)]
        found += [span.began - end for end, span in zip(ends, own, strict=False)]
    return found


def place(span: Span) -> tuple[str, float]:
    return span.gpu, span.began


def left_idle(host: Sequence[Span]) -> list[float]:
    """Seconds for which a GPU was free at the end while a run still waited there."""
    last = max(span.began for span in host)
    ends: dict[str, float] = {}
    for span in host:
        ends[span.gpu] = max(ends.get(span.gpu, 0.0), span.over)
    return [max(0.0, last - end) for end in ends.values()]


def supervisors_cpu(server: LoopbackServer) -> dict[int, float]:
    """CPU seconds of each supervisor there and of what it has started, by process."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"HOME={server.home}".encode() in (entry / "environ").read_bytes().split(b"\0")
            if ours and b"\0supervise\0" in (entry / "cmdline").read_bytes():
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                found[int(entry.name)] = sum(map(int, fields[11:15])) / TICKS
        except OSError:
            continue
    return found
