"""Every fault that we promise to survive, provoked by the hundred against a real SSH server on
loopback; prints counts.

    python benchmarks/faults.py            # all of it, about half an hour on two cores
    python benchmarks/faults.py --quick    # a tenth of it
    python benchmarks/faults.py --write    # also into benchmarks/results/faults.{md,json}

A count of states compared means: after the cut and the same command again, the hashes of all files
equal those of an uncut exchange. The first fault that breaks a promise ends the program with its
circumstances.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import about, write_page

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from hypothesis import HealthCheck, given, settings  # noqa: E402  the repository need not be installed
from hypothesis import strategies as st  # noqa: E402

from remote.loopback import LoopbackServer, Serving  # noqa: E402
from tests.e2e.test_three_commands import fab  # noqa: E402
from tests.server.test_hostile import REPLIES, altered  # noqa: E402
from tests.support.agent import agent  # noqa: E402
from tests.support.faults import Lab, short_pauses, wait_until  # noqa: E402
from tests.support.hostile import LyingLab, recording  # noqa: E402
from tests.support.names import is_a_name, trained_on  # noqa: E402
from tests.support.photos import write_photos  # noqa: E402
from tests.support.project import make_project  # noqa: E402
from tests.support.proxy import Relay  # noqa: E402
from tests.support.sshd import end_tmux, sparse_path  # noqa: E402
from tests.support.strings import HOSTILE_STRINGS, Echo, hostile_text  # noqa: E402
from tests.support.sweeps import PHASES, Follow, Sweep  # noqa: E402


@dataclass(frozen=True)
class Plan:
    """How much of each is tried."""

    cuts_per_phase: int
    follow_cuts: int
    strings: int
    fab_strings: int
    # Of every message of every task.
    altered: int


FULL = Plan(cuts_per_phase=80, follow_cuts=120, strings=2000, fab_strings=20, altered=150)
QUICK = Plan(cuts_per_phase=12, follow_cuts=15, strings=100, fab_strings=3, altered=10)


@dataclass
class Room:
    """A server with a relay before it, and a folder for the projects here."""

    folder: Path
    server: LoopbackServer
    relay: Relay
    counts: dict[str, int]

    def count(self, **found: int) -> None:
        for name, number in found.items():
            self.counts[name] = self.counts.get(name, 0) + number


def sweep_cuts(room: Room, plan: Plan) -> None:
    """Deploy, train and fetch, cut after N bytes up or down, and repeated."""
    sweep = Sweep(room.server, room.folder / "cuts", room.relay)
    for phase in PHASES:
        codes: Counter[int] = Counter()
        for point in sweep.points(phase, plan.cuts_per_phase):
            done = sweep.cut(point)
            codes[done.code] += 1
            room.count(**{"tracebacks shown": (done.out + done.err).count("Traceback")})
        room.count(
            **{
                f"cut points tried in {phase.replace('_', '-')}": codes.total(),
                "cut points tried": codes.total(),
            }
        )
        for code, number in codes.items():
            room.count(**{f"cuts that ended with exit code {code}": number})
    room.count(
        **{"states compared and equal": sweep.compared, "runs started twice": sweep.started_twice}
    )


def follow_cuts(room: Room, plan: Plan) -> None:
    """One run's log over many resets; compared byte by byte with the file on the server."""
    follow = Follow(room.server, room.folder / "follow", room.relay, lines=plan.follow_cuts * 500)
    before = room.relay.cuts
    follow.to_end_over_cuts(before + plan.follow_cuts)
    told, written = follow.text(), follow.written()
    lines = told.splitlines()
    room.count(
        **{
            "cuts while following": room.relay.cuts - before,
            "reconnects while following": follow.reconnects,
            "lines followed": len(lines),
            "bytes lost": max(0, len(written.encode()) - len(told.encode())),
            "duplicates": len(lines) - len(set(lines)),
        }
    )
    assert told == written and room.relay.cuts - before >= plan.follow_cuts


def strings(room: Room, plan: Plan) -> None:
    """From hypothesis, over one link, ten in a run; each must be the same at the other end."""
    with agent(room.server) as link:
        echo = Echo(room.server, link, room.folder)
        runs = max(1, plan.strings // 10)

        @settings(
            max_examples=runs, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(st.lists(hostile_text, min_size=10, max_size=10))
        def arrive(texts: list[str]) -> None:
            assert echo.send(texts) == texts
            room.count(**{"strings tried over one link": len(texts)})

        arrive()
        assert echo.send(HOSTILE_STRINGS) == HOSTILE_STRINGS
        room.count(**{"strings tried over one link": len(HOSTILE_STRINGS)})
    assert not list(room.server.home.rglob("pwned*"))


def fab_strings(room: Room, plan: Plan) -> None:
    """Through the real command to the real trainer: a project in a directory of a hostile name
    trains on images in another."""
    photos = write_photos(room.folder / "photos")
    project = make_project(
        room.folder / "fab ;' $(touch pwned)", settings={"python": sys.executable, "project": "p"}
    )
    for text in random.Random(0).sample(
        [text for text in HOSTILE_STRINGS if is_a_name(text)], plan.fab_strings
    ):
        assert trained_on(text, fab, project, room.server, photos) == f"{room.server.home}/{text}"
        room.count(**{"strings tried through fab and the trainer": 1})
    for text in [text for text in HOSTILE_STRINGS if "\n" in text]:
        assert (
            "error: train: --data must be"
            in fab(project, room.server, "train", "--data", text, code=2).stderr
        )
        room.count(**{"strings refused by fab before anything was sent": 1})
    assert not list(room.server.home.rglob("pwned*"))


def lies(room: Room, plan: Plan) -> None:
    """The table of replies made by hand, and honest answers with one part replaced."""
    for number, (_, task, answer, code) in enumerate(REPLIES):
        done = LyingLab(room.folder / f"lie{number}").ask(task, answer)
        assert done.code == code, done
    room.count(**{"hostile replies by hand": len(REPLIES)})
    lab = LyingLab(room.folder / "lies")
    codes: Counter[int] = Counter()
    honest = record(room)
    for task, op, frames in altered(honest, plan.altered):
        done = lab.ask(task, replying({**honest[task], op: frames}))
        codes[done.code] += 1
        shutil.rmtree(lab.results, ignore_errors=True)
    room.count(
        **{
            "altered replies": codes.total(),
            "altered replies that were refused": codes.total() - codes[0],
        }
    )


def replying(ops: dict[str, list[Any]]) -> Callable[[str, dict[str, Any]], list[Any]]:
    """Frames for each operation; no other one is known."""
    refused = [({"error": {"kind": "NotFound", "message": "no"}}, b"")]
    return lambda name, _: ops.get(name, refused)


def record(room: Room) -> dict[str, dict[str, list[Any]]]:
    """What an honest agent answers."""
    lab = Lab(room.server, room.folder, name="honest")
    found: dict[str, dict[str, list[Any]]] = {}
    for task in (
        "deploy",
        "train",
        "status",
        "logs",
        "check_gpu",
        "fetch_results",
        "clean",
        "stop",
    ):
        if task == "fetch_results":
            wait_until(lambda: lab.rows()[0]["state"] == "finished")
        found[task] = {}
        with recording(found[task]):
            assert lab.task(task).code == 0
    return found


PARTS = {
    "cuts": sweep_cuts,
    "follow": follow_cuts,
    "strings": strings,
    "fab": fab_strings,
    "lies": lies,
}


@contextmanager
def open_room() -> Iterator[Room]:
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        with (
            LoopbackServer(folder / "server", Serving(path=sparse_path(folder / "bin"))) as server,
            Relay(server.host, server.port) as relay,
        ):
            yield Room(folder, server, relay, {"tracebacks shown": 0})
            end_tmux(server.home)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def render(counts: dict[str, int]) -> str:
    return "\n".join(
        [
            "| what | count |",
            "|---|--:|",
            *(f"| {name} | {number:,} |" for name, number in counts.items()),
        ]
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    parser.add_argument(
        "--write", action="store_true", help="write benchmarks/results/faults.md and .json"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    given_options = parser.parse_args(argv)
    plan = QUICK if given_options.quick else FULL
    begun = time.monotonic()
    with open_room() as room, short_pauses():
        for name in given_options.only:
            part = time.monotonic()
            PARTS[name](room, plan)
            print(f"{name}: {time.monotonic() - part:.0f} s", file=sys.stderr, flush=True)
        said = about("faults.py", room.server.kind) | {"seconds": round(time.monotonic() - begun)}
        counts = room.counts
    write_page(
        "faults", "Faults provoked", said, render(counts), {"counts": counts}, given_options.write
    )


if __name__ == "__main__":
    main(sys.argv[1:])
