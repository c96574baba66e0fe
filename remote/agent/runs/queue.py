"""Runs that wait for GPUs on the server: first come, first served, whether a laptop is there or
not."""

import contextlib
import os
import threading
import time
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from remote.agent.machine.gpus import look_at_gpus
from remote.agent.root.calls import Refusal
from remote.agent.root.locks import Lock
from remote.agent.root.paths import Layout, layout_of
from remote.agent.run_files.records import Found, LiveRuns, since
from remote.agent.shared.gpu_choice import GpuReport, choose_gpus
from remote.agent.shared.run_records import Asked

POLL_S = float(os.environ.get("REMOTE_QUEUE_POLL_S", "5"))
APART_S = float(os.environ.get("REMOTE_QUEUE_APART_S", "2"))
"""A GPU must be seen to be free twice, so far apart: between two batches a training of somebody
else may seem idle."""
Runs = List[Found]
Texts = Tuple[str, ...]
Gpu = Tuple[str, str]
"""Its uuid and its index."""


class Waiting:
    """A run that waits for its turn. `tell`: why it does; `take`: what is its own then (uuids and
    indices of GPUs), called before others may choose."""

    def __init__(
        self,
        directory: str,
        stop: threading.Event,
        tell: Callable[[str], None],
        take: Callable[[Texts, Texts], None],
    ) -> None:
        self.run = os.path.basename(directory)
        self.layout = layout_of(directory)
        self.live = LiveRuns(self.layout)
        self.stop, self.tell, self.take = stop, tell, take
        # GPUs of this host; unknown before the first look.
        self.there: Optional[int] = None

    def wait(self, wanted: int) -> bool:
        """Until there are `wanted` free GPUs beyond those that runs before this one want; without
        any, until no run goes that came before. False where it was stopped meanwhile."""
        while not self.stop.is_set():
            try:
                reason = self._try_gpus(wanted) if wanted else self._try_turn()
            except OSError as error:
                # Of the disk, which may be full, or away for a while: no reason to lose one's turn.
                reason = f"waits for the server's disk: {error.strerror or error}"
            if reason is None:
                return True
            self.tell(reason)
            self.stop.wait(POLL_S)
        return False

    def _try_gpus(self, wanted: int) -> Optional[str]:
        """Take them, or say why not."""
        runs = self.live.look()
        before = ahead_of(runs, self.run)
        reason: Optional[str] = ""
        needed, held = wanted + demand(before), len(held_gpus(runs))
        # Those far behind don't ask: each start of nvidia-smi may initialise every GPU.
        if not before or self.there is None or self.there - held >= needed:
            report = look_at_gpus()
            self.there = len(report.gpus)
            seen, reason = choose_free(report, runs, self.run)
            if len(seen) >= needed and not self.stop.wait(APART_S):
                before, reason = self._take_seen_twice(wanted, seen)
                if reason is None:
                    return None
        gpus = "a GPU" if wanted == 1 else f"{wanted} GPUs"
        return f"waits for {gpus}: {who_is_before(before) or reason or 'too few are free'}"

    def _take_seen_twice(self, wanted: int, seen: List[Gpu]) -> Tuple[Runs, Optional[str]]:
        """The runs before it, and why others than those were not free; None: it has its GPUs."""
        with one_launch_at_a_time(self.layout):
            runs = self.live.look()
            free, reason = choose_free(look_at_gpus(), runs, self.run)
            before = ahead_of(runs, self.run)
            chosen = [gpu for gpu in free if gpu in seen][demand(before) :][:wanted]
            if len(chosen) < wanted:
                return before, reason
            self.take(tuple(uuid for uuid, _ in chosen), tuple(index for _, index in chosen))
            return before, None

    def _try_turn(self) -> Optional[str]:
        """On the processor one run goes after the other."""
        first = goes_before(self.live.look(), self.run)
        if first is None:
            with one_launch_at_a_time(self.layout):
                first = goes_before(self.live.look(), self.run)
                if first is None:
                    self.take((), ())
                    return None
        return f"waits for its turn: {first} is before it"


def who_is_before(before: Runs) -> str:
    names = [known.run for known in before]
    if len(names) > 1:
        return f"{len(names)} runs are before it, next is {names[0]}"
    return f"{names[0]} is before it" if names else ""


def goes_before(runs: Runs, run: str) -> Optional[str]:
    """The run that has the processor, or has its turn before this one."""
    goes = [known for known in runs if known.state == "running" or not waits(known)]
    before = [*ahead_of(runs, run), *goes]
    return before[0].run if before else None


def demand(runs: Runs) -> int:
    return sum(known.asked.wanted_gpus for known in runs)


def waits(known: Found) -> bool:
    return known.state == "queued" and known.asked.queue


def ahead_of(runs: Runs, run: str) -> Runs:
    """Of `runs` those that wait and were there before, the next one first."""
    waiting = [known for known in runs if waits(known)]
    mine = next((since(known) for known in waiting if known.run == run), (time.time(), run))
    return [known for known in sorted(waiting, key=since) if since(known) < mine]


def free_gpus(layout: Layout) -> Tuple[List[Gpu], str]:
    """Every GPU that nobody uses or was given; and why the others are not free."""
    return choose_free(look_at_gpus(), LiveRuns(layout).look(), "")


def choose_free(report: GpuReport, runs: Runs, run: str) -> Tuple[List[Gpu], str]:
    """The same, of what was seen; what `run` itself was given is free for it."""
    if not report.gpus:
        return [], report.problem or "the server shows no GPU"
    held = held_gpus([known for known in runs if known.run != run])
    choice = choose_gpus(report.gpus, held=held)
    return [(gpu.uuid, str(gpu.index)) for gpu in choice.gpus], "; ".join(choice.notes)


def held_gpus(runs: Runs) -> Dict[str, str]:
    """UUID → run, for runs that have not ended."""
    return {uuid: known.run for known in runs for uuid in known.asked.gpus or ()}


@contextlib.contextmanager
def one_launch_at_a_time(layout: Layout) -> Iterator[None]:
    with contextlib.closing(Lock(os.path.join(layout.runs, ".launch.lock"))) as lock:
        lock.wait()
        yield


def require_free_gpus(layout: Layout, asked: Asked) -> None:
    """GPUs that were chosen because they seemed free must still be: given to no other run, and used
    by nobody else.

    This is the second look at them; the first was the laptop's.
    """
    wanted = asked.gpus
    if asked.devices != "auto" or not wanted:
        return
    held = held_gpus(LiveRuns(layout).look())
    taken = {uuid: run for uuid, run in held.items() if uuid in wanted}
    problem = f"the GPUs were given to {', '.join(sorted(set(taken.values())))} just now"
    if not taken:
        free, reason = free_gpus(layout)
        known = [uuid for uuid, _ in free]
        taken = {uuid: "somebody" for uuid in wanted if uuid not in known}
        problem = f"the GPUs are in use by now: {reason}"
    if taken:
        raise Refusal("GpuUnfit", problem, "wait, or name one: --devices 0", taken=taken)
