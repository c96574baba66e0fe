"""Tells what happens in a run: the log by byte offset, progress, GPU use and state, until it
ends."""

import csv
import os
import time
from typing import Any, Dict, List, Optional, Sequence

from remote.agent.root.calls import Call, operation
from remote.agent.runs.gpu_usage import last_sample
from remote.agent.runs.listing import look_after
from remote.agent.runs.records import describe_run, find_run
from remote.agent.shared.states import FINAL

POLL_S = 0.25
BATCH = 256 << 10
CURVE_EPOCHS = 400
SETTLE_S, SETTLE_TRAINER_S = 1.0, 20.0
"""A command is taken for started so long after it began to write; the trainer tells itself when it
trains, unless its images take longer to arrive."""


@operation("follow")
def follow(
    call: Call,
    run: str,
    offset: int = 0,
    tail: Optional[int] = None,
    until: str = "end",
    wait_s: float = 0.0,
) -> Dict[str, Any]:
    """Events: `log` (its offset; the bytes are the blob), `progress`, `gpu`, `state`, `line`,
    `curves`.

    `tail`: start so many bytes before the end instead of at `offset`. `until`: `now` tells what
    there is and returns; `started` returns once the run has shown a sign of life or has ended;
    `end` when it has ended and all is told. `wait_s` > 0 bounds the wait.
    """
    layout = call.layout
    run = look_after(layout, find_run(layout, run))["run"]
    directory = layout.run(run)
    log = os.path.join(directory, "train.log")
    if tail is not None:
        offset = start_of_line(log, max(0, _size(log) - tail))
        # Said before there is anything to tell: after a cut the laptop goes on from here, not from
        # a new tail.
        call.event(log=offset)
    told: Dict[str, Any] = {"line": ""}
    curves = Curves(directory)
    deadline = time.monotonic() + wait_s if wait_s > 0 else None
    while True:
        described = describe_run(layout, run)
        final = described["state"] in FINAL
        offset = _tell_log(call, log, offset)
        for key, value in (
            ("progress", described["progress"]),
            ("gpu", last_sample(directory)),
            ("state", _state(described)),
            ("line", described["detail"].get("line") or ""),
            ("curves", curves.read()),
        ):
            if value != told.get(key) and (value or key == "line"):
                told[key] = value
                news: Dict[str, Any] = {key: value}
                call.event(**news)
        wrote = _size(log) > 0 or bool(described["detail"].get("line"))
        waits = described["state"] == "queued" and bool(described["detail"].get("waiting"))
        started = (
            final or waits or (described["state"] == "running" and has_started(described, wrote))
        )
        late = deadline is not None and time.monotonic() > deadline
        if until == "now" or final or late or (until == "started" and started):
            return {
                "run": run,
                "offset": offset,
                "started": started,
                "late": late,
                "described": described,
            }
        if not call.alive():
            raise BrokenPipeError
        time.sleep(POLL_S)


def has_started(described: Dict[str, Any], wrote: bool) -> bool:
    """It trains; or it wrote something and has lived for a while: what fails at once is then told
    as a failure."""
    if described["progress"].get("phase") not in (None, "starting"):
        return True
    lived = time.time() - float(described["detail"].get("started") or time.time())
    settled = SETTLE_TRAINER_S if described["asked"].get("finish") == "summary" else SETTLE_S
    return bool(wrote or described["progress"]) and lived >= settled


def _state(described: Dict[str, Any]) -> Dict[str, Any]:
    return {
        "run": described["run"],
        "state": described["state"],
        "reason": described["reason"],
        "waiting": described["detail"].get("waiting"),
        "asking": described["detail"].get("asking"),
    }


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _tell_log(call: Call, log: str, offset: int) -> int:
    if _size(log) <= offset:
        return offset
    with open(log, "rb") as file:
        file.seek(offset)
        while True:
            data = file.read(BATCH)
            if not data:
                return offset
            call.event(data, log=offset)
            offset += len(data)


def start_of_line(path: str, offset: int) -> int:
    """The first line that begins at or after `offset`."""
    if offset <= 0:
        return 0
    try:
        with open(path, "rb") as file:
            file.seek(offset - 1)
            skipped = file.readline()
            return offset - 1 + len(skipped)
    except OSError:
        return offset


class Curves:
    """The trainer's metrics.csv, read anew when it has changed."""

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, "metrics.csv")
        self.seen: Optional[float] = None
        self.values: Dict[str, List[float]] = {}

    def read(self) -> Dict[str, List[float]]:
        try:
            changed = os.stat(self.path).st_mtime
            if changed != self.seen:
                with open(self.path, newline="") as file:
                    rows = list(csv.DictReader(file))[-CURVE_EPOCHS:]
                self.values = {name: _column(rows, name) for name in ("train_loss", "val_accuracy")}
                self.seen = changed
        except (OSError, ValueError, csv.Error):
            pass
        return self.values


def _column(rows: Sequence[Dict[str, str]], name: str) -> List[float]:
    return [float(row[name]) for row in rows if row.get(name)]
