"""Runs that wait in the queues of several hosts: a sweep over fake GPUs, each host with an SSH
server, a home and a queue of its own; prints which GPU stood idle for how long.

    python benchmarks/queues.py             # 100 runs, 4 hosts with 4 GPUs: about 2 minutes
    python benchmarks/queues.py --runs 24
    python benchmarks/queues.py --write     # also into benchmarks/results/queues.{md,json}

All GPUs are somebody else's until every run waits; how much the waiting costs is measured then, and
the GPUs are freed at one moment. Each run tells itself which GPU it has, from when to when. A run
that starts twice, or a GPU that two have at once, ends the program.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pages import about, spread, write_page

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from remote.loopback import LoopbackServer, Serving, make_keys  # noqa: E402  the repository need not be installed
from tests.support.nvidia_smi import FakeGpu  # noqa: E402
from tests.support.queues import NAMES, Queues, gaps, left_idle, make_queues, supervisors_cpu  # noqa: E402
from tests.support.sshd import end_tmux, sparse_path  # noqa: E402

HOSTS, GPUS = 4, 4
WATCHED_S = 30.0
"""For so long it is watched what waiting costs."""


def open_queues(stack: ExitStack, folder: Path) -> Queues:
    keys = make_keys(folder)

    def make_server(**options: Any) -> LoopbackServer:
        place = Path(tempfile.mkdtemp(dir=folder))
        serving = Serving(keys=keys, path=sparse_path(place / "bin"), **options)
        server = LoopbackServer(place, serving)
        stack.callback(end_tmux, server.home)
        return stack.enter_context(server)

    return make_queues(make_server, folder / "project", HOSTS, {})


def waiting_cost(queues: Queues) -> float:
    """CPU seconds of all waiting runs' processes together, in each second."""
    before = [supervisors_cpu(server) for server in queues.servers]
    begun = time.monotonic()
    time.sleep(WATCHED_S)
    after = [supervisors_cpu(server) for server in queues.servers]
    used = sum(
        cpu - old.get(pid, 0.0)
        for old, new in zip(before, after, strict=True)
        for pid, cpu in new.items()
    )
    return used / (time.monotonic() - begun)


def measure(queues: Queues, runs: int) -> dict[str, Any]:
    gpus = {name: [FakeGpu() for _ in range(GPUS)] for name in NAMES[:HOSTS]}
    busy = {name: [FakeGpu(memory_used="40960", uuid=g.uuid) for g in gpus[name]] for name in gpus}
    queues.show(busy)
    begun = time.monotonic()
    told = queues.sweep(runs)
    assert told.code == 0, told
    started_s = time.monotonic() - begun
    time.sleep(5.0)
    waiting = waiting_cost(queues)
    freed = time.time()
    queues.show(gpus)
    queues.wait_for_all(runs)
    hosts = queues.spans()
    assert sum(map(len, hosts)) == runs, "a point has two runs, or none"
    for spans, own in zip(hosts, gpus.values(), strict=True):
        assert {span.gpu for span in spans} == {gpu.uuid for gpu in own}, "a GPU was never used"
    idle = [gap for spans in hosts for gap in gaps(spans, freed)]
    assert min(idle) >= 0, "two runs had one GPU at once"
    return {
        "runs": runs,
        "by_host": [len(spans) for spans in hosts],
        "sweep_s": started_s,
        "waiting_cpus": waiting,
        "all_s": max(span.over for spans in hosts for span in spans) - freed,
        "idle_s": idle,
        "left_s": [left for spans in hosts for left in left_idle(spans)],
        "training_s": [span.over - span.began for spans in hosts for span in spans],
    }


def render(found: dict[str, Any]) -> str:
    most = max(*found["idle_s"], *found["left_s"])
    busy = sum(found["training_s"]) / (found["all_s"] * HOSTS * GPUS)
    rows = [
        ("runs, each started once", f"{found['runs']} ({', '.join(map(str, found['by_host']))})"),
        ("GPUs that two runs had at once", "0"),
        ("a run's own time", f"{spread(found['training_s'], 1)} s"),
        ("a GPU stood idle before its next run", f"{spread(found['idle_s'], 1)} s"),
        ("longest that a GPU stood idle while a run waited", f"{most:.1f} s"),
        ("`sweep`, until all were in their queues", f"{found['sweep_s']:.0f} s"),
        ("from the moment the GPUs were free until all had ended", f"{found['all_s']:.0f} s"),
        ("of that time the GPUs were in use", f"{busy:.0%}"),
        (
            "all that waited together, one CPU = 100%",
            f"{found['waiting_cpus']:.1%} ({found['waiting_cpus'] / found['runs']:.3%} each)",
        ),
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(
        [
            f"{HOSTS} hosts with {GPUS} fake GPUs each, as four SSH servers of one machine: root,",
            "home, nvidia-smi and queue of their own. Runs look every 5 s, and twice, 2 s apart.",
            "Figures are median (min–max).",
            "",
            *lines,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="queue-")))
        queues = open_queues(stack, folder)
        found = measure(queues, options.runs)
    said = about("queues.py", f"OpenSSH on loopback, n = {options.runs}")
    write_page("queues", "Queues of several hosts", said, render(found), found, options.write)


if __name__ == "__main__":
    main()
