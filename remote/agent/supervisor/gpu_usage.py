"""gpu.csv: the use of a run's own GPUs over time."""

import csv
import os
import threading
import time
from typing import List, Optional

from remote.agent.machine import gpus

EVERY_S = float(os.environ.get("REMOTE_SAMPLE_S", "10"))
IDLE_PERCENT = 5
"""Of what nvidia-smi calls utilization; below it nobody trains."""


class Sampler:
    """Writes rows until `end`, of the GPUs that were given to the run: by us, else by Slurm. Stops
    for good where there is no nvidia-smi."""

    def __init__(self, directory: str, uuids: Optional[List[str]]) -> None:
        self.file = os.path.join(directory, "gpu.csv")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.named = visible.split(",") if uuids is None and visible else uuids
        self.lock = threading.Lock()
        self.ended = False
        self.used = time.monotonic()
        threading.Thread(target=self._run, daemon=True).start()

    def end(self) -> None:
        """What is fetched from now on changes no more."""
        with self.lock:
            self.ended = True

    def idle_for(self) -> float:
        """Seconds since a GPU was last seen in use. What can't be read counts as used."""
        return time.monotonic() - self.used

    def _run(self) -> None:
        while True:
            rows = gpus.sample_usage(self.named)
            if rows is None:
                self.used = float("inf")
                return
            if not rows or any(row[2] is None or row[2] >= IDLE_PERCENT for row in rows):
                self.used = time.monotonic()
            with self.lock, open(self.file, "a", newline="") as file:
                if self.ended:
                    return
                writer = csv.writer(file)
                if not file.tell():
                    writer.writerow(["time", *gpus.USAGE_COLUMNS])
                writer.writerows([round(time.time(), 1), *row] for row in rows)
            time.sleep(EVERY_S)
