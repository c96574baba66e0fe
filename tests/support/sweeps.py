"""One phase cut at one byte, and what must hold afterwards; the tests try a dozen points,
benchmarks/faults.py hundreds."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from remote.link.session import Session
from remote.loopback import LoopbackServer
from remote.screen.display import Display
from remote.watching.follow import Follower
from tests.support.faults import LOST, UNREACHABLE, Done, Lab, spread, wait_until
from tests.support.project import snapshot
from tests.support.proxy import Direction, Relay

PHASES = ("deploy", "train", "fetch_results")


LINE_BYTES = 256
"""Within so many bytes both ends have said that they speak SSH."""


@dataclass(frozen=True)
class CutPoint:
    phase: str
    direction: Direction
    after: int


class Sweep:
    """Measures an uncut exchange of every phase, then compares what is left after a cut and a
    repetition with its end."""

    def __init__(self, server: LoopbackServer, directory: Path, relay: Relay) -> None:
        self.server, self.directory, self.relay = server, directory, relay
        self.numbers = count()
        self.totals: dict[tuple[str, Direction], int] = {}
        self.compared = self.recovered = self.started_twice = 0
        self.deployed: dict[str, str] = {}
        self.fetched: dict[str, str] = {}
        self.measure()

    def lab(self) -> Lab:
        """A project and a root of its own; the name is of one length, so that every exchange has
        the same bytes."""
        return Lab(self.server, self.directory, self.relay, name=f"p{next(self.numbers):05}")

    def measure(self) -> None:
        lab = self.lab()
        for phase in PHASES:
            up, down = self.relay.bytes_up, self.relay.bytes_down
            done = lab.task(phase)
            assert done.code == 0, done
            self.totals[phase, "up"], self.totals[phase, "down"] = (
                self.relay.bytes_up - up,
                self.relay.bytes_down - down,
            )
            if phase == "deploy":
                self.deployed = lab.server_state()
            elif phase == "train":
                wait_until(lambda: lab.rows()[0]["state"] == "finished")
        self.fetched = results_of(lab)

    def points(self, phase: str, number: int) -> Iterator[CutPoint]:
        """Spread over all bytes of both directions, by turns."""
        directions: tuple[Direction, Direction] = ("up", "down")
        for direction in directions:
            for after in spread(self.totals[phase, direction], (number + 1) // 2):
                yield CutPoint(phase, direction, after)

    def cut(self, point: CutPoint) -> Done:
        """Cut, check, repeat, compare. Returns how the cut task ended."""
        lab = self.lab()
        prepare = {"deploy": [], "train": ["deploy"], "fetch_results": ["deploy", "train"]}[
            point.phase
        ]
        for phase in prepare:
            assert lab.task(phase, route=self.server).code == 0
        if point.phase == "fetch_results":
            wait_until(lambda: lab.rows()[0]["state"] == "finished")
        self.relay.cut_after(point.after, point.direction)
        done = lab.task(point.phase)
        self.relay.mend()
        check_told(point, done)
        if done.code == 0:
            self.recovered += 1
        check_nothing_half(lab, self.deployed)
        again = lab.task(point.phase)
        assert again.code == 0, (point, again)
        if point.phase == "train":
            self.compare_train(lab, point, done)
        else:
            getattr(self, f"compare_{point.phase}")(lab, point)
        self.compared += 1
        return done

    def compare_deploy(self, lab: Lab, point: CutPoint) -> None:
        left, wanted = lab.server_state(), self.deployed_as(lab)
        assert left == wanted, (point, sorted(set(left.items()) ^ set(wanted.items())))

    def compare_train(self, lab: Lab, point: CutPoint, done: Done) -> None:
        """A launch that the user was told of is over, and the same command a new one; any other
        must not double."""
        wait_until(lambda: all(row["state"] == "finished" for row in lab.rows()))
        runs = [path for path in (lab.root / "runs").iterdir() if path.is_dir()]
        wanted = 1 if done.code else 2
        processes = sum(len((run / "started").read_text().split()) for run in runs)
        self.started_twice += max(0, len(runs) - wanted) + max(0, processes - len(runs))
        assert len(runs) == wanted and processes == wanted, (point, done, runs)
        assert not list((lab.results / ".pending").glob("*.json")), point

    def compare_fetch_results(self, lab: Lab, point: CutPoint) -> None:
        assert results_of(lab) == self.fetched, point
        assert not list(lab.results.rglob(".fetch")), point
        assert lab.rows()[0]["fetched"], point

    def deployed_as(self, lab: Lab) -> dict[str, str]:
        """The uncut deploy's state; the project's own name stands in one file of it."""
        own = snapshot(lab.root)["project.json"]
        return {**self.deployed, "project.json": own}


def check_told(point: CutPoint, done: Done) -> None:
    """One clear line and the documented exit code, or it has recovered by itself and says so."""
    assert done.code in (0, LOST, UNREACHABLE), (point, done)
    assert "Traceback" not in done.err and "Traceback" not in done.out, (point, done)
    if done.code:
        assert len(done.error_lines) == 1 and "\n" not in done.error_lines[0], (point, done)
        # Until the server's line has come, nothing has answered there.
        silent = point.after < LINE_BYTES and "closed the connection before the login" in done.err
        assert done.code == LOST or silent, (point, done)


def check_nothing_half(lab: Lab, deployed: dict[str, str]) -> None:
    """What has a final name is whole: releases, the link to them, results."""
    state = lab.server_state()
    for name, what in state.items():
        if name.startswith("releases/") and "/." not in name and not name.endswith(".tmp"):
            assert deployed.get(name) == what, name
    if (lab.root / "current").is_symlink():
        assert (lab.root / "current").resolve().is_dir()
    for file in lab.results.rglob("*"):
        inside = file.relative_to(lab.results)
        if file.is_file() and ".fetch" not in inside.parts and not inside.parts[0].startswith("."):
            source = lab.root / "runs" / inside
            if inside.parts[1] == "source":
                source = lab.root / "current" / Path(*inside.parts[2:])
            assert file.read_bytes() == source.read_bytes(), file


def results_of(lab: Lab) -> dict[str, str]:
    """The fetched files but for those that hold times, process numbers and names of the run."""
    (run,) = [path for path in lab.results.iterdir() if not path.name.startswith(".")]
    for name in ("run.json", "state.json"):
        assert json.loads((run / name).read_text())
    return {
        name: what
        for name, what in snapshot(run).items()
        if name not in ("run.json", "state.json", "started")
    }


class Follow:
    """A run that writes numbered lines, and somebody who follows it through cuts. `text()` must
    equal `written()`."""

    def __init__(
        self,
        server: LoopbackServer,
        directory: Path,
        relay: Relay,
        lines: int,
        timeout_s: float = 10.0,
    ) -> None:
        # Written in bursts, so that cuts meet full and empty links, and lines in the middle.
        loop = "i=$((i+1)); echo line $i 0123456789 äöü; [ $((i % 50)) = 0 ] && sleep 0.03"
        script = f"i=0; while [ $i -lt {lines} ]; do {loop}; done; echo end\n"
        self.lab = Lab(
            server,
            directory,
            relay,
            files={"train.sh": script},
            settings={"timeout_s": timeout_s},
            name="follow",
        )
        self.relay = relay
        assert self.lab.task("train", route=server).code == 0
        self.texts: list[str] = []
        self.reconnects = 0

    @property
    def seen(self) -> int:
        return sum(map(len, self.texts))

    def text(self) -> str:
        return "".join(self.texts)

    def written(self) -> str:
        (run,) = (self.lab.root / "runs").glob("2*")
        return (run / "train.log").read_text()

    def to_end(self) -> None:
        with Session(
            self.lab.target(), self.lab.parsed_project(), CountingDisplay(self)
        ) as session:
            assert (
                Follower(session, "latest", sink=self.texts.append).until_end().state == "finished"
            )

    def to_end_over_cuts(self, cuts: int) -> None:
        """The connection is reset again and again, each time after another number of bytes, until
        there were enough."""
        thread = threading.Thread(target=self.to_end)
        thread.start()
        number = 0
        while thread.is_alive() and self.relay.cuts < cuts:
            before = self.relay.cuts
            self.relay.cut_after(4500 + 331 * number % 9000, "down")
            number += 1
            wait_until(lambda before=before: self.relay.cuts > before or not thread.is_alive())
        self.relay.mend()
        thread.join(120)
        assert not thread.is_alive()


class CountingDisplay(Display):
    """Counts how often the follower had to come back."""

    def __init__(self, follow: Follow) -> None:
        super().__init__(out=io.StringIO(), notes=io.StringIO())
        self.follow = follow

    def note(self, text: str) -> None:
        self.follow.reconnects += "Trying again" in text
