"""`watch`: the GPUs and runs of all hosts in one table that changes."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from remote.agent.shared.gpu_choice import busy_reason
from remote.deploy.shown import gpu_json_rows, memory_cell
from remote.errors import RemoteError
from remote.link.answers import Overview
from remote.link.session import Session
from remote.records import Gpu, Run
from remote.screen.live import full_screen, has_keys, interrupt
from remote.screen.tables import Column, LiveTable, state_style
from remote.screen.text import brief, one_line
from remote.screen.training import sparkline
from remote.tasks.entry import Work
from remote.tasks.run_tables import accuracy_cell, epoch_cell
from remote.watching.listing import run_json

KEPT = 20
LATE_S = 5.0
"""After the time of a host's next answer: older figures are told to be so."""
COLUMNS = (
    Column("host", least=8),
    Column("gpu", right=True),
    Column("name", least=8, spare=5),
    Column("lately", spare=4),
    Column("use", right=True),
    Column("memory", right=True, spare=1),
    Column("power", right=True, spare=6),
    Column("state", style=state_style),
    Column("run or user", least=24),
    Column("epoch", right=True, spare=2),
    Column("accuracy", right=True, spare=7),
    Column("left", right=True, spare=3),
)
STATE = 6
"""Its place in a host's rows, which have no host yet."""


@dataclass
class Board:
    """What each host has answered last; drawn again and again."""

    hosts: Sequence[str]
    every_s: float = 0.0
    told: dict[str, Overview | RemoteError] = field(default_factory=dict)
    # When each has answered, by time.monotonic().
    heard: dict[str, float] = field(default_factory=dict)
    uses: dict[str, deque[float]] = field(default_factory=dict)

    def put(self, host: str, answer: Overview | RemoteError) -> None:
        self.told[host] = answer
        if isinstance(answer, RemoteError):
            return
        self.heard[host] = time.monotonic()
        for gpu in answer.gpus.gpus:
            if gpu.utilization_percent is not None:
                lately = self.uses.setdefault(gpu.uuid, deque(maxlen=KEPT))
                lately.append(gpu.utilization_percent)

    def rows(self) -> list[list[object]]:
        return [row for host in self.hosts for row in self.host_rows(host)]

    def host_rows(self, host: str) -> list[list[object]]:
        answer = self.told.get(host)
        age_s = time.monotonic() - self.heard.get(host, time.monotonic())
        rows: list[list[object]]
        if not isinstance(answer, Overview):
            state, why = ("asking", "") if answer is None else ("unreachable", answer.message)
            why = one_line(why, 200)
            why = f"{why}; it was last heard {brief(age_s)} ago" if host in self.heard else why
            rows = [[*[None] * 6, state, why, *[None] * 3]]
        else:
            rows = [self.gpu_cells(gpu, answer) for gpu in answer.gpus.gpus]
            shown = {gpu.uuid for gpu in answer.gpus.gpus}
            beside = [run for run in answer.runs if not shown & set(run.asked.gpus or ())]
            rows += [[*[None] * 6, run.state, *run_cells(run)] for run in beside]
            rows = rows or [[*[None] * 6, "idle", answer.gpus.problem, *[None] * 3]]
            if age_s > self.every_s + LATE_S:
                for row in rows:
                    row[STATE] = f"{row[STATE]}, as told {brief(age_s)} ago"
        return [[host if not place else " ", *row] for place, row in enumerate(rows)]

    def gpu_cells(self, gpu: Gpu, answer: Overview) -> list[object]:
        run = next((run for run in answer.runs if gpu.uuid in (run.asked.gpus or ())), None)
        busy = busy_reason(gpu)
        use, power = gpu.utilization_percent, gpu.power_w
        state = run.state if run else "busy" if busy else "free"
        return [
            gpu.index,
            gpu.name,
            sparkline([*self.uses.get(gpu.uuid, ())], KEPT, (0.0, 100.0)),
            None if use is None else f"{use}%",
            memory_cell(gpu),
            None if power is None else f"{power:.0f} W",
            state,
            *(run_cells(run) if run else [busy, *[None] * 3]),
        ]

    def footer(self) -> str:
        leave = "q" if has_keys() else "Ctrl-C"
        return f"{time.strftime('%H:%M:%S')}   {leave} leaves"


def run_cells(run: Run) -> list[object]:
    return [run.run, epoch_cell(run), accuracy_cell(run), brief(run.progress.seconds_left)]


def watch_hosts(work: Work, every_s: float) -> int:
    """Live until q or Ctrl-C; without a terminal, or as JSON, what there is now."""
    if work.json or not work.display.live:
        answers = work.on_all(lambda session: session.ask(Overview))
        board = Board([target.spec for target in work.targets])
        for target, answer, error in answers:
            board.put(target.spec, error or answer)
        work.tell_json([host_json(host, board.told[host]) for host in board.hosts])
        if not work.json:
            work.display.table(COLUMNS, board.rows())
        return work.first_failure(answers)
    return watch_live(work, max(0.5, every_s))


def watch_live(work: Work, every_s: float) -> int:
    sessions = [work.session(target) for target in work.targets]
    if len(sessions) == 1:
        sessions[0].log_in()  # which may ask for a password
    board, left = Board([session.host for session in sessions], every_s), threading.Event()
    drawing = LiveTable(COLUMNS, board.rows, board.footer)

    def pressed(key: str) -> None:
        if key in "qQ":
            interrupt()

    threads = [
        threading.Thread(target=keep_looking, args=(session, board, left, every_s), daemon=True)
        for session in sessions
    ]
    with (
        contextlib.suppress(KeyboardInterrupt),
        full_screen(work.display, drawing, lambda text: None, pressed),
    ):
        for thread in threads:
            thread.start()
        while True:
            time.sleep(3600)
    left.set()
    for thread in threads:
        thread.join(2)
    return 0


def keep_looking(session: Session, board: Board, left: threading.Event, every_s: float) -> None:
    """Ask one host again and again, through broken connections."""
    session.target = dataclasses.replace(session.target, interactive=False)
    while not left.is_set():
        try:
            board.put(session.host, session.ask(Overview))
        except RemoteError as error:
            session.close()
            board.put(session.host, error)
        left.wait(every_s)
    session.close()


def host_json(host: str, answer: Overview | RemoteError) -> dict[str, Any]:
    if isinstance(answer, RemoteError):
        return {"host": host, "error": answer.message, "gpus": None, "runs": None}
    held = {uuid: run.run for run in answer.runs for uuid in run.asked.gpus or ()}
    return {
        "host": host,
        "error": None,
        "gpus": gpu_json_rows(answer.gpus, held),
        "runs": [run_json(run, host) for run in answer.runs],
    }
