"""The words in which a run's way is told, on both ends."""

from typing import Literal

State = Literal["queued", "running", "finished", "failed", "stopped", "unknown"]
LIVE = ("queued", "running")
FINAL = ("finished", "failed", "stopped")
Finish = Literal["summary", "exit"]
"""By what a run counts as finished: our trainer's summary.json, or exit code 0."""
