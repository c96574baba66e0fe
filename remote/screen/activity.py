"""What goes on now, at the bottom of a terminal: the steps done, and a spinner or a bar."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remote.records import Step
from remote.screen.language import translate
from remote.screen.tables import bar
from remote.screen.text import duration, size

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.tree import Tree

LATELY_S, SURE_AFTER_S = 15.0, 3.0
"""A transfer's rate is that of its last seconds, and says nothing in its first ones."""


@dataclass
class Transfer:
    """Bytes on their way."""

    label: str
    total: int
    done: int = 0
    seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=4096))

    def arrived(self, done: int) -> None:
        now = time.monotonic()
        self.done = done
        self.seen.append((now, done))
        while now - self.seen[0][0] > LATELY_S:
            self.seen.popleft()

    @property
    def rate(self) -> float | None:
        """Bytes per second."""
        (began, first), (now, last) = self.seen[0], self.seen[-1]
        return (last - first) / (now - began) if now - began > SURE_AFTER_S else None

    @property
    def figures(self) -> str:
        """12.0 MiB of 560.0 MiB  3.1 MiB/s  2 min 56 s left"""
        parts = [f"{size(self.done)} of {size(self.total)}"]
        if self.rate:
            parts += [
                f"{size(self.rate)}/s",
                f"{duration((self.total - self.done) / self.rate)} left",
            ]
        return "  ".join(map(translate, parts))

    def __rich__(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(expand=True, padding=(0, 1, 0, 0))
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        row.add_row(
            Text(translate(self.label)), bar(self.done, max(1, self.total)), Text(self.figures)
        )
        return row


def step_tree(title: str, steps: Sequence[Step]) -> Tree:
    """What a deploy has done (✓) and kept (=)."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(translate(title), "bold"), guide_style="dim")
    for step in steps:
        sign = ("✓ ", "green") if step.changed else ("= ", "dim")
        told = Text.assemble(sign, (translate(step.text), "" if step.changed else "dim"))
        told.highlight_regex("(warning:|警告：).*", "yellow not dim")
        tree.add(told)
    return tree


class Region:
    """The lines that are replaced, below whatever else is shown."""

    def __init__(self, console: Console, title: str, steps: Sequence[Step]) -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        unicode = console.encoding.startswith("utf")
        self.spinner = Spinner("dots" if unicode else "line", style="cyan")
        self.title = title
        self.steps = steps
        self.now: str | Transfer = ""
        self.live = Live(
            get_renderable=self.render,
            console=console,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.live.start()

    def render(self) -> RenderableType:
        from rich.text import Text

        doing: RenderableType = self.now
        if isinstance(self.now, str):
            text = Text(self.now, no_wrap=True, overflow="ellipsis")
            self.spinner.update(text=text)
            doing = self.spinner
        if not self.steps:
            return doing
        tree = step_tree(self.title, self.steps)
        if self.now:
            tree.add(doing)
        return tree

    def close(self) -> None:
        self.live.stop()
