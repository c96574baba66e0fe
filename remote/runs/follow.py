"""Follows a run through broken connections: log by byte offset, progress, GPU use, the end."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping
from typing import Any

from remote.errors import ProtocolError
from remote.link.answers import Followed
from remote.link.session import Session
from remote.records import Run
from remote.screen.display import render_progress
from remote.screen.text import one_line

TRIES = 5
LONGEST_LINE = 64 << 10


class Follower:
    """Shows a run as it goes. `offset` is the byte of the log that comes next: no line is lost and
    none shown twice."""

    def __init__(
        self,
        session: Session,
        run: str,
        offset: int = 0,
        show_log: bool = True,
        sink: Callable[[str], None] | None = None,
    ) -> None:
        """`sink` takes the log's lines in place of the screen."""
        self.session = session
        self.run = run
        self.offset = offset
        self.show_log = show_log
        self.progress: Mapping[str, Any] = {}
        self.gpu: Mapping[str, Any] = {}
        self.lines = LineBuffer(sink or session.display.log)
        self.tail: int | None = None
        self.waiting = ""
        self.line = ""
        self.asking = False

    def until_started(self, wait_s: float) -> tuple[bool, Run]:
        """Whether it shows a sign of life (or has ended) within `wait_s`, and the run as it
        stands."""
        answer = self.session.patiently(
            lambda: self._follow("started", wait_s), "the run goes on", TRIES
        )
        return answer.started, answer.described

    def until_end(self) -> Run:
        """To the end, coming back by itself whenever the connection breaks, for as long as it
        takes."""
        answer = self.session.patiently(lambda: self._follow("end", 0.0), "the run goes on")
        self.lines.finish()
        return answer.described

    def now(self) -> Run:
        """What there is, and no waiting."""
        answer = self._follow("now", 0.0)
        self.lines.finish()
        return answer.described

    def _follow(self, until: str, wait_s: float) -> Followed:
        arguments: dict[str, Any] = {"run": self.run, "until": until, "wait_s": wait_s}
        if self.tail is not None:
            arguments["tail"] = self.tail
        else:
            arguments["offset"] = self.offset
        return self.session.ask(Followed, self._event, **arguments)

    def _event(self, event: dict[str, Any], blob: bytes) -> None:
        if type(event.get("log")) is int:
            if self.tail is None and event["log"] != self.offset:
                raise ProtocolError(
                    "the server tells the log from another place than was asked for", step="follow"
                )
            self.tail = None
            self.offset = event["log"] + len(blob)
            if self.show_log:
                self.lines.write(blob)
        if isinstance(event.get("progress"), Mapping):
            self.progress = event["progress"]
        if isinstance(event.get("gpu"), Mapping):
            self.gpu = event["gpu"]
        state = event.get("state")
        if isinstance(state, Mapping):
            self.waiting = (
                state["waiting"]
                if state.get("state") == "queued" and isinstance(state.get("waiting"), str)
                else ""
            )
            if state.get("asking") is True and not self.asking:
                self.session.display.note(
                    f"it waits for an answer in its terminal: fab -H {self.session.typed} attach"
                    f" --run {self.run}"
                )
            self.asking = state.get("asking") is True
        if "line" in event:
            self.line = one_line(event["line"], 400) if isinstance(event["line"], str) else ""
        if self.waiting:
            self.session.display.progress(
                f"{self.waiting} (Ctrl-C leaves it in the queue)", force=True
            )
        elif self.progress or self.line:
            rows = render_progress(self.progress, self.gpu) if self.progress else []
            self.session.display.block(["", *filter(None, [self.line]), *rows], force=True)


class LineBuffer:
    """Bytes in, whole lines out; a carriage return replaces what stood before it, as on a
    terminal."""

    def __init__(self, sink: Callable[[str], None]) -> None:
        self.sink = sink
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.rest = ""

    def write(self, data: bytes) -> None:
        text = self.rest + self.decoder.decode(data)
        whole, newline, self.rest = text.rpartition("\n")
        if newline:
            lines = [line.rstrip("\r").rpartition("\r")[2] for line in whole.split("\n")]
            self.sink("\n".join(lines) + "\n")
        if len(self.rest) > LONGEST_LINE:
            self.sink(self.rest)
            self.rest = ""

    def finish(self) -> None:
        if self.rest:
            self.sink(self.rest + "\n")
            self.rest = ""
