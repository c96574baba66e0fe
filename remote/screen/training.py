"""A training on one screen: progress, curves, GPUs, and its log below. Lines are cut, never
wrapped."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remote.records import GpuUse, Progress
from remote.screen.language import translate
from remote.screen.tables import bar, state_style
from remote.screen.text import broken_at_words, duration, one_line, padded, percent, printable, show

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

BLOCKS = "▁▂▃▄▅▆▇█"
KEPT = 400
KEYS = "q leaves, the training goes on   s stops it"
NO_KEYS = "Ctrl-C leaves, the training goes on"
QUEUED_KEYS = "q leaves, it starts by itself   s takes it out of the queue"
QUEUED_NO_KEYS = "Ctrl-C leaves, it starts by itself"
CURVES = {"train_loss": "loss", "val_accuracy": "accuracy"}


@dataclass
class TrainingView:
    """What is known of a run; drawn again and again. `news` is what replaces the keys' line: a
    question, a broken connection."""

    run: str
    host: str
    state: str = ""
    progress: Progress = field(default_factory=Progress)
    gpus: Mapping[str, GpuUse] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    log: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))
    # What the training shows in a line that it will write over.
    line: str = ""
    # Why it is still in the queue.
    waiting: str = ""
    news: str = ""
    keyboard: bool = True

    @property
    def keys(self) -> str:
        if self.state == "queued":
            return QUEUED_KEYS if self.keyboard else QUEUED_NO_KEYS
        return KEYS if self.keyboard else NO_KEYS

    def write(self, text: str) -> None:
        """Lines of the log, or remarks of ours among them."""
        self.log.extend(printable(text).expandtabs(4).splitlines())

    def tell(self, progress: Progress) -> None:
        """Newer figures; where the server knows no curve, they make one."""
        self.progress = progress
        for name in CURVES:
            value, curve = getattr(progress.metrics, name), self.curves.setdefault(name, [])
            if value is not None and curve[-1:] != [value]:
                curve.append(value)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        from rich.rule import Rule
        from rich.text import Text

        head = [
            _ends(Text(translate(f"{self.run} on {self.host}"), "bold"), state_text(self.state)),
            *self._progress_rows(options.max_width),
            *curve_rows(self.curves, options.max_width),
            *gpu_rows(self.gpus),
            Rule(style="dim"),
        ]
        yield from head
        room = max(0, (options.height or console.height) - len(head) - 1)
        lines = [*self.log, *([self.line] if self.line else [])][-room:] if room else []
        for line in [*lines, *[""] * (room - len(lines))]:
            yield _one(Text(line))
        yield _one(Text(translate(self.news or self.keys), "yellow" if self.news else "dim"))

    def _progress_rows(self, width: int) -> list[RenderableType]:
        from rich.text import Text

        if self.state != "queued":
            return progress_rows(self.progress)
        told = broken_at_words(translate(f"queued: {self.waiting}"), width)
        return [_one(Text(line)) for line in told.splitlines()]


def state_text(state: str) -> Any:
    from rich.text import Text

    return Text(translate(state), state_style(state))


def _one(text: Any) -> Any:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _ends(left: Any, right: Any) -> RenderableType:
    """One line, its right end always shown."""
    return _row([left, right], [1, None])


def _row(cells: Sequence[RenderableType], ratios: Sequence[int | None]) -> RenderableType:
    from rich.table import Table

    row = Table.grid(expand=True, padding=(0, 1, 0, 0))
    for ratio in ratios:
        row.add_column(ratio=ratio, no_wrap=True, overflow="ellipsis")
    row.add_row(*cells)
    return row


def describe_progress(progress: Progress) -> str:
    """34%  epoch 12/150  3 h 2 min left; what is unknown is left out."""
    parts = []
    if progress.share is not None:
        parts.append(f"{100 * progress.share:.0f}%")
    if progress.epoch is not None:
        most = f"/{show(progress.max_epochs)}" if progress.max_epochs else ""
        parts.append(f"epoch {show(progress.epoch)}{most}")
    if progress.phase not in ("", "fitting"):
        parts.append(one_line(progress.phase, 20))
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    return "  ".join(map(translate, parts))


def describe_figures(progress: Progress) -> str:
    """loss 0.412  validation 88.12%  best 88.40%  3512 images/s"""
    metrics, parts = progress.metrics, []
    if metrics.train_loss is not None:
        parts.append(f"loss {metrics.train_loss:.3f}")
    if metrics.val_accuracy is not None:
        parts.append(f"validation {percent(metrics.val_accuracy)}")
    if metrics.best_val_accuracy is not None:
        parts.append(f"best {percent(metrics.best_val_accuracy)}")
    if progress.images_per_s is not None:
        parts.append(f"{progress.images_per_s:.0f} images/s")
    return "  ".join(map(translate, parts))


def progress_rows(progress: Progress) -> list[RenderableType]:
    from rich.text import Text

    if progress == Progress():
        return [Text(translate("no progress is told yet"), "dim")]
    text, share = Text(describe_progress(progress)), progress.share
    told = text if share is None else _row([bar(share, 1.0), text], [1, None])
    rows: list[RenderableType] = [told]
    figures = describe_figures(progress)
    return [*rows, *([_one(Text(figures))] if figures else [])]


def sparkline(values: Sequence[float], width: int, ends: tuple[float, float] | None = None) -> str:
    """As many blocks as finite values, at most `width`: each then is the mean of its neighbours.
    `ends`: what is lowest and highest; else the values' own."""
    values = [value for value in values if math.isfinite(value)]
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    cut = [round(place * len(values) / count) for place in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cut)]
    low, high = ends or (min(means), max(means))
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] for mean in means)


def curve_rows(curves: Mapping[str, Sequence[float]], width: int) -> list[RenderableType]:
    from rich.text import Text

    rows: list[RenderableType] = []
    for name, label in CURVES.items():
        values = curves.get(name) or ()
        if len(values) > 1:
            told = [percent(v, 1) if label == "accuracy" else f"{v:.3f}" for v in values]
            spark = sparkline(values, min(60, width - 32))
            colour = "green" if label == "accuracy" else "magenta"
            ends = f"  {told[0]} → {told[-1]}"
            rows.append(_one(Text.assemble(padded(translate(label), 10), (spark, colour), ends)))
    return rows


def gpu_rows(gpus: Mapping[str, GpuUse], most: int = 8) -> list[RenderableType]:
    """gpu0 ━━━━━━━━╸━  82%  11.2 of 80.0 GiB  301 W"""
    from rich.table import Table
    from rich.text import Text

    rows: list[RenderableType] = []
    for index, use in list(gpus.items())[:most]:
        row = Table.grid(padding=(0, 1, 0, 0))
        for _ in range(3):
            row.add_column(no_wrap=True)
        busy = bar(use.utilization_percent or 0.0, 100.0, 10)
        row.add_row(Text(f"gpu{one_line(index, 8)}"), busy, Text(describe_gpu(use)))
        rows.append(row)
    if len(gpus) > most:
        rows.append(Text(translate(f"and {len(gpus) - most} more GPUs")))
    return rows


def describe_gpu(use: GpuUse) -> str:
    busy, used, total = use.utilization_percent, use.memory_used_mib, use.memory_total_mib
    parts = [f"{busy:3.0f}%" if busy is not None else "   –"]
    if used is not None:
        of = f" of {total / 1024:.1f}" if total is not None else ""
        parts.append(f"{used / 1024:.1f}{of} GiB")
    if use.power_w is not None:
        parts.append(f"{use.power_w:.0f} W")
    return "  ".join(map(translate, parts))
