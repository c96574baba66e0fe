"""Runs that wait for GPUs on the server: first come, first served, whether a laptop is there or
not."""

import contextlib
import os
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from remote.agent.machine.gpus import query_gpus
from remote.agent.root.calls import Refusal
from remote.agent.root.locks import Lock
from remote.agent.root.paths import Layout
from remote.agent.runs.records import LiveRuns
from remote.agent.shared.gpu_choice import GpuReport, choose_gpus, held_gpus, parse_gpus

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
    live = LiveRuns(layout)
    if not wanted:
        return take_turn(layout, live, run, stop, tell, take)
    there = None
    while not stop.is_set():
        runs = live.look()
        before = ahead_of(runs, run)
        reason = ""
        # Those far behind don't ask: each start of nvidia-smi may initialise every GPU.
        if not before or there is None or there - len(held_gpus(runs)) >= wanted + demand(before):
            report = parse_gpus(query_gpus())
            there = len(report.gpus)
            first, reason = choose_free(report, runs, run)
            if len(first) >= wanted + demand(before) and not stop.wait(APART_S):
                with one_launch_at_a_time(layout):
                    runs = live.look()
                    second, reason = choose_free(parse_gpus(query_gpus()), runs, run)
                    before = ahead_of(runs, run)
                    seen_twice = [gpu for gpu in second if gpu in first]
                    chosen = seen_twice[demand(before) :][:wanted]
                    if len(chosen) == wanted:
                        take([uuid for uuid, _ in chosen], [index for _, index in chosen])
                        return True
        tell(
            f"waits for {'a GPU' if wanted == 1 else f'{wanted} GPUs'}:"
            f" {who_is_before(before) or reason or 'too few are free'}"
        )
        stop.wait(POLL_S)
    return False


def who_is_before(before: List[Dict[str, Any]]) -> str:
    names = [known["run"] for known in before]
    if len(names) > 1:
        return f"{len(names)} runs are before it, next is {names[0]}"
    return f"{names[0]} is before it" if names else ""


def take_turn(
    layout: Layout,
    live: LiveRuns,
    run: str,
    stop: threading.Event,
    tell: Callable[[str], None],
    take: Callable[[List[str], List[str]], None],
) -> bool:
    """On the processor one run after the other: wait until none goes that came before."""
    while not stop.is_set():
        first = goes_before(live.look(), run)
        if first is None:
            with one_launch_at_a_time(layout):
                first = goes_before(live.look(), run)
                if first is None:
                    take([], [])
                    return True
        tell(f"waits for its turn: {first} is before it")
        stop.wait(POLL_S)
    return False


def goes_before(runs: List[Dict[str, Any]], run: str) -> Optional[str]:
    """The run that has the processor, or has its turn before this one."""
    goes = [known for known in runs if known["state"] == "running" or not waits(known)]
    before = [*ahead_of(runs, run), *goes]
    return str(before[0]["run"]) if before else None


def demand(runs: List[Dict[str, Any]]) -> int:
    return sum(wanted_by(known["asked"]) for known in runs)


def wanted_by(asked: Dict[str, Any]) -> int:
    wanted = asked.get("wanted_gpus")
    return wanted if isinstance(wanted, int) else 1


def waits(known: Dict[str, Any]) -> bool:
    return known["state"] == "queued" and bool(known["asked"].get("queue"))


def ahead_of(runs: List[Dict[str, Any]], run: str) -> List[Dict[str, Any]]:
    """Of `runs` those that wait and were there before, the next one first."""
    waiting = [known for known in runs if waits(known)]
    mine = next((place(known) for known in waiting if known["run"] == run), (time.time(), run))
    return [known for known in sorted(waiting, key=place) if place(known) < mine]


def place(known: Dict[str, Any]) -> Tuple[float, str]:
    since = known["detail"].get("since")
    return (float(since) if isinstance(since, (int, float)) else 0.0, known["run"])


def free_gpus(layout: Layout) -> Tuple[List[Tuple[str, str]], str]:
    """(uuid, index) of every GPU that nobody uses or was given; and why the others are not free."""
    return choose_free(parse_gpus(query_gpus()), LiveRuns(layout).look(), "")


def choose_free(
    report: GpuReport, runs: List[Dict[str, Any]], run: str
) -> Tuple[List[Tuple[str, str]], str]:
    """The same, of what was seen; what `run` itself was given is free for it."""
    if not report.gpus:
        return [], report.problem or "the server shows no GPU"
    held = held_gpus(known for known in runs if known["run"] != run)
    choice = choose_gpus(report.gpus, held=held)
    return [(gpu.uuid, str(gpu.index)) for gpu in choice.gpus], "; ".join(choice.notes)


@contextlib.contextmanager
def one_launch_at_a_time(layout: Layout) -> Iterator[None]:
    lock = Lock(os.path.join(layout.runs, ".launch.lock"))
    try:
        lock.wait()
        yield
    finally:
        lock.close()


def require_free_gpus(layout: Layout, asked: Dict[str, Any]) -> None:
    """GPUs that were chosen because they seemed free must still be: given to no other run, and used
    by nobody else.

    This is the second look at them; the first was the laptop's.
    """
    wanted = asked.get("gpus")
    if asked.get("devices") != "auto" or not isinstance(wanted, list) or not wanted:
        return
    held = held_gpus(LiveRuns(layout).look())
    taken = {uuid: run for uuid, run in held.items() if uuid in wanted}
    if not taken:
        free, reason = free_gpus(layout)
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
