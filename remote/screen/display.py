"""The only file that prints: lines, tables, and what goes on now. Results go to stdout, the rest to
stderr."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from remote.errors import RemoteError, TransferFailed
from remote.records import Step
from remote.screen.activity import Region, Transfer, step_tree
from remote.screen.language import translate, translate_error
from remote.screen.plain import leave_pipe
from remote.screen.tables import Column, build_table
from remote.screen.text import COMMAND, as_typed, broken_at_words, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

EVERY_S = 30.0
"""So often a long step is told where no terminal shows it."""
WIDE = 100_000
MEANING = (
    r"^(?P<red>error:|错误：)",
    r"^(?P<yellow>(?:warning|note|waiting|kept|not sent|not fetched):)",
    r"^(?P<yellow>(?:警告|提示|等待|保留|未发送|未取回)：)",
    r"^  (?:(?P<green>ok|正常)|(?P<yellow>warning|警告)|(?P<red>problem|问题)) ",
    f"(?P<cyan>{COMMAND})",
)
"""What is coloured in a line of ours; the group's name is the colour."""


class Display:
    """`json_mode`: stdout carries nothing but the JSON; everything else goes to stderr.

    `live`: one terminal takes all of it, so that something may move there. A pipe behind either
    stream, `TERM=dumb` or no terminal at all: whole lines, and rich is not even loaded.
    """

    def __init__(
        self, json_mode: bool = False, out: TextIO | None = None, notes: TextIO | None = None
    ) -> None:
        self.json_mode = json_mode
        self.out = out or (sys.stderr if json_mode else sys.stdout)
        self.notes = notes or sys.stderr
        for stream in (self.out, self.notes):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        self.live = is_terminal(self.out) and is_terminal(self.notes)
        self.consoles: dict[TextIO, Console] = {}
        self.region: Region | None = None
        self.transferring: Transfer | None = None
        self.told, self.step_told = 0.0, ""
        self.done: list[Step] = []
        # How a command to the same server begins, for hints.
        self.fab = "fab -H user@host"
        # Takes what would be printed, while something fills the screen.
        self.sink: Callable[[str], None] | None = None

    def line(self, text: str = "", head: str = "") -> None:
        """A line of the result; on a terminal what does not fit goes on behind `head`, which stands
        before it as it is."""
        text = translate(text)
        if head and self.sink is None and is_terminal(self.out):
            self.console(self.out).print(self._hanging(head, self._ours(text)))
        else:
            self._write(self.out, head + text)

    def note(self, text: str) -> None:
        """A remark beside the result: a step, a warning."""
        self._write(self.notes, translate(text))

    def interrupted(self, text: str) -> None:
        """A remark after Ctrl-C, in the place of the ^C that the terminal has written."""
        self.clear()
        if is_terminal(self.notes):
            from rich.control import Control
            from rich.segment import ControlType

            start_again = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
            self.console(self.notes).control(start_again)
        self.note(text)

    def error(self, error: RemoteError | str) -> None:
        self.steps("so far")
        # A file's name may hold a line break.
        self._write(self.notes, translate_error(error).replace("\n", " "))

    def json(self, value: Any) -> None:
        self.clear()
        text = json.dumps(value, ensure_ascii=False, indent=1, default=str)
        try:
            text.encode(sys.stdout.encoding or "utf-8")
        except UnicodeError:
            text = json.dumps(value, indent=1, default=str)
        self._put(sys.stdout, text)

    def log(self, text: str) -> None:
        """Lines of a run's log, as they are but for what could command a terminal."""
        self._write(self.out, text.removesuffix("\n"), ours=False)

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> list[str]:
        """Fits the terminal; elsewhere every cell is whole. Returns the columns left out."""
        self.clear()
        terminal = is_terminal(self.out)
        width = self.console(self.out).width if terminal else WIDE
        table, left_out = build_table(columns, rows, width)
        if terminal:
            self.show(table)
            return left_out
        from rich.console import Console

        plain = Console(file=io.StringIO(), width=WIDE, color_system=None, force_terminal=False)
        with plain.capture() as captured:
            plain.print(table)
        for text in captured.get().splitlines():
            self._write(self.out, text.rstrip())
        return left_out

    def step(self, step: Step) -> None:
        """One more is done; told for good by `steps`, or before an error."""
        self.clear()
        self.done.append(step)

    def steps(self, title: str, only_changes: bool = False) -> None:
        """What was done and what was kept, as a tree or line by line."""
        self.clear()
        shown = [step for step in self.done if step.changed or not only_changes]
        self.done.clear()
        if self.live and shown:
            self.show(step_tree(title, shown))
            return
        for step in shown:
            self.line(step.text)

    def show(self, what: RenderableType) -> None:
        """A drawing, on the terminal that stdout is."""
        self.clear()
        self.console(self.out).print(what)

    def doing(self, text: str, step: str = "") -> None:
        """What goes on now. Where nothing can be replaced it is told every 30 s, and a new `step`
        at once."""
        self.transferring = None
        if self.live:
            self._region().now = printable(translate(text)).replace("\n", " ")
        elif self._is_time() or step != self.step_told:
            self.note(f"  {text}")
        self.step_told = step

    def transfer(self, label: str, done: int, total: int) -> None:
        """So much of it has arrived, of so much."""
        known = self.transferring
        if known is None or known.label != label or known.total != total or done < known.done:
            known = self.transferring = Transfer(label, total)
        known.arrived(done)
        if self.live:
            self._region().now = known
        elif self._is_time():
            self.note(f"{translate(label)}  {known.figures}")

    def confirm(self, question: str) -> bool | None:
        """Yes or no, where somebody sits at a terminal; None where nobody does."""
        if not sys.stdin.isatty() or not self.notes.isatty():
            return None
        self.clear()
        self.notes.write(printable(f"{translate(question)} [y/N] "))
        self.notes.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def clear(self) -> None:
        """Nothing goes on any more."""
        self.told, self.step_told, self.transferring = 0.0, "", None
        if self.region is not None:
            self.region.close()
            self.region = None

    def console(self, stream: TextIO) -> Console:
        """The one that writes there; on one terminal, one for both streams."""
        if self.live:
            stream = self.out
        if stream not in self.consoles:
            from rich.console import Console
            from rich.highlighter import RegexHighlighter
            from rich.theme import Theme

            class Ours(RegexHighlighter):
                base_style = "meaning."
                highlights = list(MEANING)  # noqa: RUF012 (as rich declares it)

            colours = {f"meaning.{name}": name for name in ("red", "yellow", "green", "cyan")}
            self.consoles[stream] = Console(
                file=stream, highlighter=Ours(), theme=Theme(colours), emoji=False, markup=False
            )
        return self.consoles[stream]

    def _ours(self, text: str) -> str:
        told = printable(text).replace("fab -H …", self.fab).replace("fab …", self.fab)
        return as_typed(told)

    def _hanging(self, head: str, text: str) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        told = self.console(self.out).highlighter(Text(head + text))
        grid = Table.grid()
        grid.add_column(no_wrap=True)
        grid.add_row(told[: len(head)], told[len(head) :])
        return grid

    def _write(self, stream: TextIO, text: str, ours: bool = True) -> None:
        text = self._ours(text) if ours else printable(text)
        if self.sink is not None:
            self.sink(text)
        elif is_terminal(stream):
            console = self.console(stream)
            shown = broken_at_words(text, console.width) if ours else text
            console.print(shown, soft_wrap=True, highlight=ours)
        else:
            self._put(stream, text)

    def _put(self, stream: TextIO, text: str) -> None:
        try:
            stream.write(text + "\n")
            stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            leave_pipe(stream)
            if stream is not self.notes:  # without remarks the result is the same
                text = f"stdout can't be written: {error.strerror}"
                raise TransferFailed(text) from None

    def _region(self) -> Region:
        if self.region is None:
            self.region = Region(self.console(self.out), "so far", self.done)
        return self.region

    def _is_time(self) -> bool:
        now = time.monotonic()
        if not self.told or now - self.told >= EVERY_S:
            first, self.told = not self.told, now
            return not first
        return False


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"
