"""Tables that fit the screen, one line a row, whatever the names in it; and bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from remote.screen.language import title, translate
from remote.screen.text import UNKNOWN, printable, show

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.progress_bar import ProgressBar
    from rich.table import Table

GAP = 2
STATES: Mapping[str, str] = {
    "running": "cyan",
    "queued": "yellow",
    "finished": "green",
    "failed": "red",
    "stopped": "yellow",
    "unreachable": "red",
    "free": "green",
}
"""Base colours alone: a terminal's own palette makes them readable on light and on dark."""


def state_style(cell: str) -> str:
    return STATES.get(cell, "")


def bar(done: float, total: float, width: int | None = None) -> ProgressBar:
    """As wide as the place it stands in, or as told."""
    from rich.progress_bar import ProgressBar

    return ProgressBar(
        total=total,
        completed=done,
        width=width,
        style="dim",
        complete_style="cyan",
        finished_style="green",
    )


def plain(cell: str) -> str:
    return ""


@dataclass(frozen=True)
class Column:
    """`least`: it may be cut to so many cells; None: never. `spare`: what is left out first where
    the screen is narrow has the highest; 0 always stays. `ours`: single words in
    it are not names, nor are they where it has a style. `key`: it is cut last, and once the sparest
    column is gone."""

    title: str
    least: int | None = None
    spare: int = 0
    right: bool = False
    style: Callable[[str], str] = plain
    ours: bool = False
    key: bool = False


def natural_widths(lines: Sequence[Sequence[str]]) -> dict[int, int]:
    from rich.cells import cell_len

    return {place: max(cell_len(row[place]) for row in lines) for place in range(len(lines[0]))}


def fit(columns: Sequence[Column], natural: Mapping[int, int], width: int) -> dict[int, int]:
    """Which columns are shown, and how wide: the spare ones go, then what may be cut is cut."""
    widths = dict(natural)
    least = {
        place: wide if columns[place].least is None else min(wide, columns[place].least or 0)
        for place, wide in natural.items()
    }
    whole = {place: wide if columns[place].key else least[place] for place, wide in natural.items()}
    sparest = max((column.spare for column in columns), default=0)
    for needed, most in ((whole, sparest - 1), (least, 0)):
        while sum(needed[place] + GAP for place in widths) - GAP > width:
            place = max(widths, key=lambda place: columns[place].spare)
            if columns[place].spare <= max(most, 0):
                break
            del widths[place]
    while (excess := sum(widths.values()) + GAP * (len(widths) - 1) - width) > 0:
        slack = {place: wide - least[place] for place, wide in widths.items()}
        place = max(widths, key=lambda p: (slack[p] > 0 and not columns[p].key, slack[p]))
        if widths[place] <= least[place]:
            break
        # One cell at a time, so that the widest gives most.
        widths[place] -= min(excess, 1)
    return widths


def build_table(
    columns: Sequence[Column], rows: Sequence[Sequence[object]], width: int
) -> tuple[Table, list[str]]:
    """The table, and the titles of what had to be left out or cut."""
    from rich.table import Table
    from rich.text import Text

    cells = [[printable(show(cell)) for cell in row] for row in rows]
    ours = [column.ours or column.style is not plain for column in columns]
    told = [[translate(*cell) for cell in zip(row, ours, strict=True)] for row in cells]
    titles = [title(column.title) for column in columns]
    natural = natural_widths([titles, *told])
    known = [
        place
        for place, column in enumerate(columns)
        if not column.spare or any(row[place] != UNKNOWN for row in cells)
    ]
    shown = fit(columns, {place: natural[place] for place in known}, width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for place, wide in shown.items():
        side: Literal["left", "right"] = "right" if columns[place].right else "left"
        told_title = Text(titles[place])
        table.add_column(told_title, justify=side, width=wide, no_wrap=True, overflow="ellipsis")
    for row, shown_row in zip(cells, told, strict=True):
        table.add_row(*(Text(shown_row[p], columns[p].style(row[p])) for p in shown))
    return table, [columns[place].title for place in known if shown.get(place) != natural[place]]


@dataclass(frozen=True)
class LiveTable:
    """A table that is asked for its rows each time that it is drawn, and a line below it."""

    columns: Sequence[Column]
    rows: Callable[[], Sequence[Sequence[object]]]
    footer: Callable[[], str]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        from rich.text import Text

        yield build_table(self.columns, self.rows(), options.max_width)[0]
        yield Text(f"\n{translate(self.footer())}", "dim")
