"""The only file that prints: lines, tables and one progress bar. Results go to stdout, the rest to
stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from remote.screen.text import one_line, pad, printable, width

UNKNOWN = "–"


class Display:
    """`json_mode`: stdout carries nothing but the JSON; everything else goes to stderr."""

    def __init__(
        self, json_mode: bool = False, out: TextIO | None = None, notes: TextIO | None = None
    ) -> None:
        self.json_mode = json_mode
        self.out = out or (sys.stderr if json_mode else sys.stdout)
        self.notes = notes or sys.stderr
        self.live = self.notes.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = 0
        self._shown_at = 0.0

    def line(self, text: str = "") -> None:
        """A line of the result."""
        self.clear()
        _write(self.out, printable(text) + "\n")

    def note(self, text: str) -> None:
        """A remark beside the result: a step, a warning."""
        self.clear()
        _write(self.notes, printable(text) + "\n")

    def error(self, text: str) -> None:
        self.note(f"error: {text}")

    def json(self, value: Any) -> None:
        self.clear()
        _write(sys.stdout, json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.line(render_table(head, rows))

    def log(self, text: str) -> None:
        """Lines of a run's log, as they are but for what could command a terminal."""
        self.clear()
        _write(self.out, printable(text))

    def progress(self, text: str, force: bool = False) -> None:
        """One line that is replaced; on what is no terminal nothing is shown."""
        self.block([text], force)

    def block(self, lines: Sequence[str], force: bool = False) -> None:
        """Some lines at the bottom that are replaced, below whatever else is shown; on what is no
        terminal nothing is shown."""
        now = time.monotonic()
        if not self.live or (now - self._shown_at < 0.1 and not force):
            return
        screen = shutil.get_terminal_size()
        fitting = [_cut(line, screen.columns - 1) for line in lines[: max(1, screen.lines - 2)]]
        up = f"\x1b[{self._shown - 1}A" if self._shown > 1 else ""
        _write(self.notes, f"\r{up}" + "\n".join(f"{line}\x1b[K" for line in fitting) + "\x1b[J")
        self._shown, self._shown_at = len(fitting), now

    def confirm(self, question: str) -> bool | None:
        """Yes or no, where somebody sits at a terminal; None where nobody does."""
        if not sys.stdin.isatty() or not self.notes.isatty():
            return None
        self.clear()
        _write(self.notes, printable(f"{question} [y/N] "))
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def clear(self) -> None:
        if self._shown:
            up = f"\x1b[{self._shown - 1}A" if self._shown > 1 else ""
            _write(self.notes, f"\r{up}\x1b[J")
            self._shown = 0


def _cut(text: str, columns: int) -> str:
    """On one line, and no wider than that."""
    text = printable(text[:4000]).replace("\n", " ").replace("\t", " ")
    while width(text) > columns:
        text = text[:-1]
    return text


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        stream.write(
            text.encode(stream.encoding or "ascii", "replace").decode(stream.encoding or "ascii")
        )
    stream.flush()


def render_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns padded for wide characters; None is shown as unknown, a number to the right."""
    cells = [list(head), *([show(cell) for cell in row] for row in rows)]
    widths = [max(width(row[column]) for row in cells) for column in range(len(head))]
    numeric = [
        all(isinstance(row[c], (int, float)) or row[c] is None for row in rows) and bool(rows)
        for c in range(len(head))
    ]
    lines = []
    for row in cells:
        parts = [
            " " * (widths[c] - width(cell)) + cell if numeric[c] else pad(cell, widths[c])
            for c, cell in enumerate(row)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def show(value: object) -> str:
    if value is None or value == "":
        return UNKNOWN
    return one_line(str(value), 200)


def percent(fraction: object, digits: int = 2) -> str:
    """0.9123 → 91.23%"""
    return (
        f"{100 * fraction:.{digits}f}%"
        if isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
        else UNKNOWN
    )


def duration(seconds: object) -> str:
    """75 → 1 min 15 s"""
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds < 1e9:
        return UNKNOWN
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: object) -> str:
    if not isinstance(count, (int, float)) or isinstance(count, bool):
        return UNKNOWN
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return UNKNOWN


def bar(fraction: float | None, columns: int = 20) -> str:
    if fraction is None:
        return "[" + "·" * columns + "]"
    filled = round(max(0.0, min(1.0, fraction)) * columns)
    return "[" + "█" * filled + "·" * (columns - filled) + "]"


def number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def render_progress(progress: Mapping[str, Any], gpu: Mapping[str, Any] | None = None) -> list[str]:
    """The training in a few lines, from progress.json and the GPUs' use; what is unknown is left
    out."""
    metrics = progress.get("metrics")
    metrics = metrics if isinstance(metrics, Mapping) else {}
    step, total = number(progress.get("step")), number(progress.get("total_steps"))
    share = step / total if step is not None and total else None
    first = [bar(share, 30)]
    if share is not None:
        first.append(f"{100 * share:.0f}%")
    if number(progress.get("epoch")) is not None:
        first.append(
            f"epoch {progress['epoch']}"
            + (f"/{progress['max_epochs']}" if progress.get("max_epochs") else "")
        )
    if progress.get("phase") and progress.get("phase") != "fitting":
        first.append(str(progress["phase"]))
    if number(progress.get("seconds_left")) is not None:
        first.append(f"{duration(progress['seconds_left'])} left")
    second = []
    if number(metrics.get("train_loss")) is not None:
        second.append(f"loss {metrics['train_loss']:.3f}")
    if number(metrics.get("val_accuracy")) is not None:
        second.append(f"validation {percent(metrics['val_accuracy'])}")
    if number(metrics.get("best_val_accuracy")) is not None:
        second.append(f"best {percent(metrics['best_val_accuracy'])}")
    if number(progress.get("images_per_s")) is not None:
        second.append(f"{progress['images_per_s']:.0f} images/s")
    lines = ["  ".join(first), *(["  ".join(second)] if second else [])]
    for index, sample in (gpu or {}).items():
        if isinstance(sample, Mapping):
            lines.append(render_gpu(str(index), sample))
    return lines


def _figure(cell: object) -> float | None:
    """A cell of gpu.csv."""
    try:
        value = float(str(cell))
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None


def render_gpu(index: str, sample: Mapping[str, Any]) -> str:
    """gpu0 [████████··]  82%  memory 11.2 of 80.0 GiB"""
    use, used, total = (
        _figure(sample.get(key))
        for key in ("utilization_percent", "memory_used_mib", "memory_total_mib")
    )
    busy = (
        f"{bar(use / 100, 10)} {use:3.0f}%" if use is not None else f"{bar(None, 10)} {UNKNOWN:>4}"
    )
    of = f" of {total / 1024:.1f}" if total is not None else ""
    return (
        f"gpu{index} {busy}  memory {used / 1024:.1f}{of} GiB"
        if used is not None
        else f"gpu{index} {busy}"
    )
