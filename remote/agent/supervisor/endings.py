"""Why a training is to end before its own time: a stop, a signal, a limit of its own, its disk."""

import os
import signal
import threading
import time
from typing import Optional

from remote.agent.group.peers import Report
from remote.agent.launchers import slurm
from remote.agent.root.paths import read_json
from remote.agent.shared.run_records import Asked
from remote.agent.shared.states import Outcome
from remote.agent.supervisor.gpu_usage import Sampler
from remote.agent.supervisor.run_state import RunState

LOOK_EVERY_S = 1.0


class Limits:
    """Of one supervisor's attempts together; what waits in the queue uses up nothing."""

    def __init__(self, asked: Asked) -> None:
        self.most_s, self.idle_s = asked.limit_s, asked.idle_s
        self.began = time.monotonic()

    def reached(self, sampler: Optional[Sampler]) -> Optional[Outcome]:
        """The end that is due, if one is."""
        if self.most_s and time.monotonic() - self.began >= self.most_s:
            reason = f"its time limit of {minutes(self.most_s)} is over; it was told to save"
            return Outcome("stopped", reason, "time limit")
        if self.idle_s and sampler is not None and sampler.idle_s >= self.idle_s:
            reason = f"its GPUs were idle for {minutes(self.idle_s)}; it was told to save"
            return Outcome("stopped", reason, "idle")
        return None


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


class Endings:
    def __init__(self, state: RunState, asked: Asked) -> None:
        self.state = state
        self.asked = asked
        self.stop = threading.Event()
        self.stop_file = os.path.join(state.directory, "stop.json")
        self.limits = Limits(Asked())
        self.limit: Optional[Outcome] = None
        self.disk_problem: Optional[str] = None
        self.seen = 0.0

    def heed_signals(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        signal.signal(signal.SIGINT, lambda *_: self.stop.set())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def start_clock(self) -> None:
        self.limits = Limits(self.asked)

    def look_around(self) -> None:
        """What other hosts may have written meanwhile; and that this one lives."""
        self.state.raise_if_superseded()
        if os.path.exists(self.stop_file):
            self.stop.set()
        self.state.tell_alive(self.asked.by_slurm)

    def due(self, sampler: Optional[Sampler]) -> bool:
        """Asked many times a second."""
        if time.monotonic() - self.seen > LOOK_EVERY_S:
            self.seen = time.monotonic()
            self.disk_problem = self.state.disk.problem()
            self.look_around()
            self.limit = self.limits.reached(sampler)
        return bool(self.stop.is_set() or self.disk_problem or self.limit)

    def why_scheduled(self) -> Optional[Outcome]:
        """Where nobody has stopped it, a scheduler's signal or a limit of its own."""
        if not self.stop.is_set():
            return self.limit
        if not self.asked.by_slurm or os.path.exists(self.stop_file):
            return None
        return slurm.why_signalled(self.asked, self.state.known.started or 0.0)

    def who_stopped(self) -> Optional[str]:
        if not self.stop.is_set():
            return None
        who = (read_json(self.stop_file) or {}).get("who")
        return f"stopped by {who}" if who else "stopped by a signal"

    def outcome(self) -> Outcome:
        """Of what has to end without having run, or before it is looked at."""
        scheduled = self.why_scheduled()
        if scheduled:
            return scheduled
        stopped = self.who_stopped()
        if stopped:
            return Outcome("stopped", stopped, "stopped")
        return Outcome("failed", self.disk_problem, "disk full")

    def asked_to_stop(self) -> Optional[Report]:
        """For the other hosts, which are to end, too."""
        self.look_around()
        return Report(*self.outcome()) if self.stop.is_set() else None
