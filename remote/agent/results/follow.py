"""Tells what happens in a run: the log by byte offset, progress, GPU use and state, until it
ends."""

import csv
import os
import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from remote.agent.machine.gpus import USAGE_COLUMNS
from remote.agent.root.calls import Call, operation
from remote.agent.root.paths import read_end
from remote.agent.run_files.records import Found, describe_run, find_run, require_state
from remote.agent.runs.listing import look_after
from remote.agent.shared.states import FINAL

POLL_S = 0.25
BATCH = 256 << 10
CURVE_EPOCHS = 400
MOST_TAIL = 1 << 20
UNREADABLE_S = 5.0
"""A network disk fails now and then."""
SETTLE_S, SETTLE_TRAINER_S = 1.0, 20.0
"""A command is taken for started so long after it began to write; the trainer tells itself when it
trains, unless its images take longer to arrive."""


class Question(NamedTuple):
    """`tail`: start with so many of the log's last lines, not at `offset`. `until`: `now` tells
    what there is and returns; `started` returns once the run has shown a sign of life or has ended;
    `end` when it has ended and all is told. `wait_s` > 0 bounds the wait."""

    run: str
    offset: int = 0
    tail: Optional[int] = None
    until: str = "end"
    wait_s: float = 0.0


@operation("follow", takes=Question)
def follow(call: Call, question: Question) -> Dict[str, Any]:
    """Events: `log` (its offset; the bytes are the blob), `progress`, `gpu`, `state`, `line`,
    `curves`."""
    layout = call.layout
    run = look_after(layout, find_run(layout, question.run)).run
    teller = Teller(call, layout.run(run))
    teller.begin(question.offset, question.tail)
    told = time.monotonic()
    deadline = told + question.wait_s if question.wait_s > 0 else float("inf")
    while True:
        described = describe_run(layout, run)
        teller.tell(described)
        final = described.state in FINAL
        if described.state != "unknown":
            told = time.monotonic()
        elif question.until != "now":
            find_run(layout, run)  # raises where it was removed
            if time.monotonic() - told > UNREADABLE_S:
                require_state(described)
        started = final or shows_life(described, teller.wrote(described))
        late = time.monotonic() > deadline
        if question.until == "now" or final or late or (question.until == "started" and started):
            return {"started": started, "late": late, "described": described.tell()}
        if not call.alive():
            raise BrokenPipeError
        time.sleep(POLL_S)


class Teller:
    """Tells of a run what is new since it told before."""

    def __init__(self, call: Call, directory: str) -> None:
        self.call = call
        self.directory = directory
        self.log = os.path.join(directory, "train.log")
        self.offset = 0
        self.told: Dict[str, Any] = {"line": ""}
        self.curves = Curves(directory)

    def begin(self, offset: int, tail: Optional[int]) -> None:
        self.offset = offset
        if tail is not None:
            self.offset = start_of_last(self.log, tail)
            # Said before there is anything to tell: after a cut the laptop goes on from here, not
            # from a new tail.
            self.call.event(log=self.offset)

    def wrote(self, described: Found) -> bool:
        return _size(self.log) > 0 or bool(described.detail.line)

    def tell(self, described: Found) -> None:
        self._tell_log()
        found: Dict[str, Any] = {
            "progress": described.progress,
            "gpu": last_sample(self.directory),
            "state": _state(described),
            "line": described.detail.line,
            "curves": self.curves.read(),
        }
        for key, value in found.items():
            if value != self.told.get(key) and (value or key == "line"):
                self.told[key] = value
                self.call.event(**{key: value})

    def _tell_log(self) -> None:
        if _size(self.log) <= self.offset:
            return
        with open(self.log, "rb") as file:
            file.seek(self.offset)
            for data in iter(lambda: file.read(BATCH), b""):
                self.call.event(data, log=self.offset)
                self.offset += len(data)


def shows_life(described: Found, wrote: bool) -> bool:
    """It waits for GPUs, which may take days, or has started."""
    if described.state == "queued":
        return bool(described.detail.waiting)
    return described.state == "running" and has_started(described, wrote)


def has_started(described: Found, wrote: bool) -> bool:
    """It trains; or it wrote something and has lived for a while: what fails at once is then told
    as a failure."""
    if described.progress.get("phase") not in (None, "starting"):
        return True
    lived = time.time() - (described.detail.started or time.time())
    settled = SETTLE_TRAINER_S if described.asked.is_trainer else SETTLE_S
    return bool(wrote or described.progress) and lived >= settled


def _state(described: Found) -> Dict[str, Any]:
    return {
        "run": described.run,
        "state": described.state,
        "reason": described.detail.reason,
        "waiting": described.detail.waiting,
        "asking": described.detail.asking,
    }


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def start_of_last(path: str, lines: int) -> int:
    """Where the last so many lines begin, of those within the last MiB."""
    begin = max(0, _size(path) - MOST_TAIL)
    try:
        with open(path, "rb") as file:
            file.seek(begin)
            data = file.read()
    except OSError:
        return 0
    at = len(data) - 1
    for _ in range(lines):
        at = data.rfind(b"\n", 0, max(0, at))
        if at < 0:
            return begin + (data.find(b"\n") + 1 if begin else 0)
    return begin + at + 1


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


def last_sample(directory: str) -> Optional[Dict[str, Any]]:
    """The newest row for each GPU; None where there is none."""
    newest: Dict[str, Any] = {}
    for line in read_end(os.path.join(directory, "gpu.csv"), 4096).splitlines():
        # A run that an older version began has no watts.
        cells = line.split(",")
        if len(cells) >= len(USAGE_COLUMNS) and cells[0][:1].isdigit():
            newest[cells[1]] = dict(zip(USAGE_COLUMNS[2:], map(_figure, cells[3:])))
    return newest or None


def _figure(cell: str) -> Optional[float]:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None
