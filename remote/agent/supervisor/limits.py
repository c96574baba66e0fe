"""Ends that were asked for in advance: so long in all, or so long without its GPUs being used."""

import time
from typing import Any, Dict, Optional, Tuple

from remote.agent.supervisor.gpu_usage import Sampler


class Limits:
    """Of one supervisor's attempts together; what waits in the queue uses up nothing."""

    def __init__(self, asked: Dict[str, Any]) -> None:
        self.most_s = float(asked.get("limit_s") or 0)
        self.idle_s = float(asked.get("idle_s") or 0)
        self.began = time.monotonic()

    def reached(self, sampler: Optional[Sampler]) -> Optional[Tuple[str, str, str]]:
        """State, reason and cause of the end that is due; None where none is."""
        if self.most_s and time.monotonic() - self.began >= self.most_s:
            reason = f"its time limit of {minutes(self.most_s)} is over; it was told to save"
            return "stopped", reason, "time limit"
        if self.idle_s and sampler is not None and sampler.idle_s >= self.idle_s:
            reason = f"its GPUs were idle for {minutes(self.idle_s)}; it was told to save"
            return "stopped", reason, "idle"
        return None


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
