"""Runs that wait for GPUs on the server: first come, first served, whether a laptop is there or
not."""

import contextlib
import fcntl
import os
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple

from remote.agent.calls import Refusal
from remote.agent.machine.gpus import query_gpus
from remote.agent.root.locks import open_lock
from remote.agent.root.paths import Layout
from remote.agent.runs.records import list_runs
from remote.agent.shared.gpu_choice import choose_gpus, held_gpus, parse_gpus
from remote.agent.shared.states import FINAL

POLL_S = float(os.environ.get("REMOTE_QUEUE_POLL_S", "5"))
APART_S = float(os.environ.get("REMOTE_QUEUE_APART_S", "2"))
"""A GPU must be seen to be free twice, so far apart: between two batches a training of somebody
else may seem idle."""


def take_gpus(
    directory: str,
    wanted: int,
    stop: threading.Event,
    tell: Callable[[str], None],
    take: Callable[[List[str], List[str]], None],
) -> bool:
    """Wait until there are `wanted` free GPUs beyond those that runs before this one want, and
    `take` them (uuids, indices).

    `take` is called before others may choose. `tell`: why it waits. False where it was stopped
    meanwhile.
    """
    run, layout = os.path.basename(directory), Layout(os.path.dirname(os.path.dirname(directory)))
    if not wanted:
        return take_turn(layout, run, stop, tell, take)
    while not stop.is_set():
        first, reason = free_gpus(layout, run)
        before = ahead_of(layout, run)
        if len(first) >= wanted + demand(before) and not stop.wait(APART_S):
            with one_launch_at_a_time(layout):
                second, reason = free_gpus(layout, run)
                before = ahead_of(layout, run)
                seen_twice = [gpu for gpu in second if gpu in first]
                chosen = seen_twice[demand(before) :][:wanted]
                if len(chosen) == wanted:
                    take([uuid for uuid, _ in chosen], [index for _, index in chosen])
                    return True
        if before:
            names = [known["run"] for known in before]
            reason = (
                f"{names[0]} is before it"
                if len(names) == 1
                else f"{len(names)} runs are before it, next is {names[0]}"
            )
        tell(
            f"waits for {'a GPU' if wanted == 1 else f'{wanted} GPUs'}:"
            f" {reason or 'too few are free'}"
        )
        stop.wait(POLL_S)
    return False


def take_turn(
    layout: Layout,
    run: str,
    stop: threading.Event,
    tell: Callable[[str], None],
    take: Callable[[List[str], List[str]], None],
) -> bool:
    """On the processor one run after the other: wait until none goes that came before."""
    while not stop.is_set():
        with one_launch_at_a_time(layout):
            before = ahead_of(layout, run)
            goes = [
                known
                for known in list_runs(layout)
                if known["state"] == "running"
                or (known["state"] == "queued" and not known["asked"].get("queue"))
            ]
            if not goes and not before:
                take([], [])
                return True
        tell(f"waits for its turn: {(before or goes)[0]['run']} is before it")
        stop.wait(POLL_S)
    return False


def demand(runs: List[Dict[str, Any]]) -> int:
    return sum(wanted_by(known["asked"]) for known in runs)


def wanted_by(asked: Dict[str, Any]) -> int:
    wanted = asked.get("wanted_gpus")
    return wanted if isinstance(wanted, int) else 1


def ahead_of(layout: Layout, run: str) -> List[Dict[str, Any]]:
    """Runs that wait and were there before, the next one first."""
    waiting = [
        known
        for known in list_runs(layout)
        if known["state"] == "queued" and known["asked"].get("queue")
    ]
    mine = next((place(known) for known in waiting if known["run"] == run), (time.time(), run))
    return [known for known in sorted(waiting, key=place) if place(known) < mine]


def place(known: Dict[str, Any]) -> Tuple[float, str]:
    since = known["detail"].get("since")
    return (float(since) if isinstance(since, (int, float)) else 0.0, known["run"])


def free_gpus(layout: Layout, run: str) -> Tuple[List[Tuple[str, str]], str]:
    """(uuid, index) of every GPU that nobody uses or was given; and why the others are not free."""
    report = parse_gpus(query_gpus())
    if not report.gpus:
        return [], report.problem or "the server shows no GPU"
    live = [
        known for known in list_runs(layout) if known["state"] not in FINAL and known["run"] != run
    ]
    choice = choose_gpus(report.gpus, held=held_gpus(live))
    return [(gpu.uuid, str(gpu.index)) for gpu in choice.gpus], "; ".join(choice.notes)


@contextlib.contextmanager
def one_launch_at_a_time(layout: Layout) -> Iterator[None]:
    fd = open_lock(os.path.join(layout.runs, ".launch.lock"))
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def require_free_gpus(layout: Layout, asked: Dict[str, Any]) -> None:
    """GPUs that were chosen because they seemed free must still be: given to no other run, and used
    by nobody else.

    This is the second look at them; the first was the laptop's.
    """
    wanted = asked.get("gpus")
    if asked.get("devices") != "auto" or not isinstance(wanted, list) or not wanted:
        return
    live = [
        run
        for run in list_runs(layout)
        if run["state"] not in FINAL and isinstance(run["gpus"], list)
    ]
    taken = {uuid: run["run"] for run in live for uuid in run["gpus"] if uuid in wanted}
    if not taken:
        free, reason = free_gpus(layout, "")
        known = [uuid for uuid, _ in free]
        taken = {uuid: "somebody" for uuid in wanted if uuid not in known}
        if taken:
            raise Refusal(
                "GpuUnfit",
                f"the GPUs are in use by now: {reason}",
                "wait, or name one: --devices 0",
                taken=taken,
            )
    if taken:
        holders = ", ".join(sorted(set(taken.values())))
        raise Refusal(
            "GpuUnfit",
            f"the GPUs were given to {holders} just now",
            "wait, or name one: --devices 0",
            taken=taken,
        )
