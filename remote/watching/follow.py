"""Follows a run through broken connections: log by byte offset, progress, GPU use, the end."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from remote.errors import AuthenticationFailed, ProtocolError
from remote.link.answers import Followed
from remote.link.events import FollowEvent, RunNews, heard
from remote.link.session import Session
from remote.records import Run
from remote.screen.live import full_screen, has_keys, interrupt
from remote.screen.text import one_line
from remote.screen.training import TrainingView, describe_progress

TRIES = 5
LONGEST_LINE = 64 << 10
LAST_LINES = 40
"""Of the log, where one begins to follow a run that has written before."""
STAYS = 12
"""So many lines of the log are still there when the screen is left."""
ASK = "stop the training? It saves its state first.  y stops it   any other key: no"


class StopWanted(Exception):
    """Whoever watches has asked for the run's end."""


class LeaveWanted(Exception):
    """Whoever watches has seen enough; the training goes on."""


class Follower:
    """Shows a run as it goes. `offset` is the byte of the log that comes next: no line is lost and
    none shown twice."""

    def __init__(
        self,
        session: Session,
        run: str,
        show_log: bool = True,
        sink: Callable[[str], None] | None = None,
    ) -> None:
        """`sink` takes the log's lines in place of the screen."""
        self.session = session
        self.run = run
        self.offset = 0
        self.show_log = show_log
        self.view = TrainingView(run, session.host)
        self.lines = LineBuffer(sink or session.display.log)
        self.tail: int | None = None
        self.asking = False
        self.wanted: StopWanted | LeaveWanted | None = None

    def on_screen(self, work: Callable[[], Run]) -> Run:
        """`work` behind the live screen. Where a login is gone that somebody must answer for, it is
        asked for on the plain terminal, and the screen comes back. Raises as `screen` does."""
        while True:
            try:
                with self.screen():
                    return work()
            except AuthenticationFailed:
                if not self.session.target.can_ask:
                    raise
                self.session.close()
                self.session.display.note("the login is gone, the run goes on; logging in again")
                self.session.patiently(self.session.log_in, "the run goes on")

    @contextlib.contextmanager
    def screen(self) -> Iterator[None]:
        """The training on the whole terminal while the block runs. Raises LeaveWanted for q,
        StopWanted for s and y."""
        session, display = self.session, self.session.display
        # A question of the login would be lost behind what is drawn.
        target = session.target
        session.target = dataclasses.replace(target, interactive=False)
        sink, self.lines.sink = self.lines.sink, self.view.write
        self.view.keyboard = has_keys()
        try:
            with full_screen(display, self.view, self.view.write, self.pressed):
                yield
        except KeyboardInterrupt:
            if self.wanted is None:
                raise
            session.close()
            raise self.wanted from None
        finally:
            session.target, self.lines.sink = target, sink
            for line in list(self.view.log)[-STAYS:]:
                display.log(line)

    def pressed(self, key: str) -> None:
        if self.wanted:
            return
        asked, self.view.news = self.view.news == ASK, ""
        if asked and key in "yY":
            self.wanted = StopWanted()
        elif not asked and key in "qQ":
            self.wanted = LeaveWanted()
        elif not asked and key in "sS":
            self.view.news = ASK
        if self.wanted:
            interrupt()

    @property
    def goes_on(self) -> str:
        """What happens to the run when nobody looks any more."""
        return "it starts by itself" if self.view.state == "queued" else "the training goes on"

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
        answer = self.session.ask(Followed, heard(FollowEvent, self._event), **arguments)
        self.session.display.clear()
        return answer

    def _event(self, event: FollowEvent, blob: bytes) -> None:
        if event.log is not None:
            if self.tail is None and event.log != self.offset:
                raise ProtocolError(
                    "the server tells the log from another place than was asked for", step="follow"
                )
            self.tail = None
            self.offset = event.log + len(blob)
            if self.show_log:
                self.lines.write(blob)
        if event.progress is not None:
            self.view.tell(event.progress)
            if not self.show_log:
                told = describe_progress(event.progress)
                self.session.display.doing(f"{self.view.run}: {told}")
        if event.curves is not None:
            self.view.curves = {name: list(values) for name, values in event.curves.items()}
        if event.gpu is not None:
            self.view.gpus = event.gpu
        if event.state is not None:
            self._told(event.state)
        if event.line is not None:
            self.view.line = one_line(event.line, 400)

    def _told(self, news: RunNews) -> None:
        display = self.session.display
        # Also after a cut it is this run, whatever is the latest by then.
        self.run = self.view.run = one_line(news.run, 80)
        self.view.state = one_line(news.state, 20)
        self.view.waiting = news.waiting or "it starts by itself"
        if news.state == "queued" and news.waiting and display.sink is None:
            leave = " (Ctrl-C leaves it in the queue)"
            display.note(f"queued: {news.waiting}{leave}")
        if news.asking and not self.asking:
            command = f"fab -H {self.session.typed} attach --run {self.run}"
            display.note(f"it waits for an answer in its terminal: {command}")
        self.asking = news.asking


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
