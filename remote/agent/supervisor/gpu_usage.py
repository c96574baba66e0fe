"""gpu.csv: the use of a run's own GPUs over time."""

import contextlib
import csv
import os
import threading
import time
from typing import Any, List, Optional, Sequence

from remote.agent.machine import gpus

EVERY_S = float(os.environ.get("REMOTE_SAMPLE_S", "10"))
IDLE_PERCENT = 5
"""Of what nvidia-smi calls utilization; below it nobody trains."""


class Sampler:
    """Writes rows until `end`, of the GPUs that were given to the run: by us, else by Slurm. Stops
    for good where there is no nvidia-smi."""

    def __init__(self, directory: str, uuids: Optional[Sequence[str]]) -> None:
        self.file = os.path.join(directory, "gpu.csv")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.named = visible.split(",") if uuids is None and visible else uuids
        self.lock = threading.Lock()
        self.ended = False
        # For so long none of its GPUs was in use. What can't be read counts as used, and so does
        # what nobody looks at.
        self.idle_s = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def end(self) -> None:
        """What is fetched from now on changes no more."""
        with self.lock:
            self.ended = True

    def _run(self) -> None:
        looked = time.monotonic()
        while True:
            rows = gpus.sample_usage(self.named)
            now = time.monotonic()
            passed, looked = min(now - looked, 2 * EVERY_S), now
            is_used = not rows or any(row[2] is None or row[2] >= IDLE_PERCENT for row in rows)
            self.idle_s = 0.0 if is_used else self.idle_s + passed
            if rows is None:
                return
            with self.lock:
                if self.ended:
                    return
                # A disk that is full or away ends no look at the GPUs.
                with contextlib.suppress(OSError):
                    self._write(rows)
            time.sleep(EVERY_S)

    def _write(self, rows: List[List[Any]]) -> None:
        with open(self.file, "a", newline="") as file:
            writer = csv.writer(file)
            if not file.tell():
                writer.writerow(["time", *gpus.USAGE_COLUMNS])
            writer.writerows([round(time.time(), 1), *row] for row in rows)
