"""A sweep's runs compared: one row for each point, the mean over seeds, the best; as a table, JSON,
CSV and a picture."""

from __future__ import annotations

import csv
import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.records import FINAL, Run
from remote.screen.display import Display
from remote.screen.tables import Column, state_style
from remote.screen.text import percent, show

SEED = "seed"
NOT_STARTED = "not started"
NOT_ASKED, NOT_FOUND, UNREACHABLE = "not asked", "not found", "unreachable"
"""The host that has the point's run: -H did not name it, it does not know the run, it is down."""
HEAD = ["host", "run", "state", "epochs", "seconds", "test_accuracy", "best_val_accuracy"]


@dataclass(frozen=True)
class Row:
    """A point of the sweep. `run` None: it is not known to any host that was asked, nor here."""

    values: Mapping[str, str]
    host: str | None
    run: Run | None
    # The state of a point that no host tells of.
    remark: str = ""

    @property
    def accuracy(self) -> float | None:
        """On the test set where it was read, else the best on the validation set."""
        if self.run is None:
            return None
        tested, metrics = self.run.summary.test_accuracy, self.run.progress.metrics
        return next(
            (
                value
                for value in (tested, metrics.best_val_accuracy, metrics.val_accuracy)
                if value is not None
            ),
            None,
        )

    @property
    def state(self) -> str:
        """A point that was sent may train on a host that does not answer."""
        if self.run and self.run.state != "unknown":
            return self.run.state
        return self.remark or "unknown"

    @property
    def kind(self) -> str:
        return "test" if self.run and self.run.summary.test_accuracy is not None else "val"


@dataclass(frozen=True)
class Group:
    """Points that differ in their seed alone: n, mean and sample standard deviation (None below
    two)."""

    values: Mapping[str, str]
    n: int
    mean: float
    sd: float | None


def group_rows(rows: Sequence[Row]) -> list[Group]:
    """The best mean first. Of runs that have finished."""
    found: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for row in rows:
        if row.accuracy is not None and row.run is not None and row.run.state == "finished":
            key = tuple((name, value) for name, value in row.values.items() if name != SEED)
            found.setdefault(key, []).append(row.accuracy)
    groups = [
        Group(
            dict(key),
            len(values),
            statistics.mean(values),
            statistics.stdev(values) if len(values) > 1 else None,
        )
        for key, values in found.items()
    ]
    return sorted(groups, key=lambda group: -group.mean)


def label_of(values: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items()) or "all"


def describe_group(group: Group) -> str:
    spread = f" ± {100 * group.sd:.2f}" if group.sd is not None else ""
    return f"{percent(group.mean)}{spread} (n={group.n})"


def show_sweep(display: Display, name: str, rows: Sequence[Row]) -> None:
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    cells = [
        [
            *(row.values.get(key) for key in keys),
            row.host,
            row.run.run if row.run else None,
            row.state,
            f"{row.kind} {percent(row.accuracy)}" if row.accuracy is not None else None,
        ]
        for row in rows
    ]
    columns = [Column("host", least=8, spare=1), Column("run", least=16)]
    columns += [Column("state", style=state_style), Column("accuracy", right=True)]
    display.table([*map(Column, keys), *columns], cells)
    states = [row.state for row in rows]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    display.line(f"{name}: {len(rows)} point{'s' * (len(rows) != 1)}: {counted}")
    groups = group_rows(rows)
    if any(SEED in row.values for row in rows) and len(groups) > 1:
        means = [[label_of(group.values), describe_group(group)] for group in groups]
        display.table([Column("mean over seeds", least=20), Column("accuracy")], means)
    if groups:
        point, reached = label_of(groups[0].values), describe_group(groups[0])
        over = all(row.run and row.run.has_ended for row in rows)
        display.line(f"best: {point}: {reached}" if over else f"best so far: {point}: {reached}")


def sweep_json(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "sweep": name,
        "points": [
            {
                "values": dict(row.values),
                "host": row.host,
                "run": row.run.run if row.run else None,
                "state": row.run.state if row.run else None,
                "accuracy": row.accuracy,
                "accuracy_of": row.kind if row.accuracy is not None else None,
            }
            for row in rows
        ],
        "groups": [
            {"values": dict(group.values), "n": group.n, "mean": group.mean, "sd": group.sd}
            for group in group_rows(rows)
        ],
    }


def rounded(value: float | None, digits: int) -> float | None:
    """Without what a binary fraction adds."""
    return None if value is None else round(value, digits)


def read_ended(place: Path, keys: Sequence[str]) -> dict[tuple[str, ...], list[str]]:
    """Rows of runs that have ended, by their values, of an earlier sweep.csv of these keys."""
    try:
        with place.open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
    except (OSError, ValueError):
        return {}
    state = len(keys) + HEAD.index("state")
    rows = rows if head == [*keys, *HEAD] else []
    ended = [row for row in rows if len(row) == len(head) and row[state] in FINAL]
    return {tuple(row[: len(keys)]): row for row in ended}


def write_csv(place: Path, rows: Sequence[Row]) -> None:
    """What an earlier one tells of a run that nobody else knows any more stays in it."""
    keys = list(dict.fromkeys(key for row in rows for key in row.values))
    earlier = read_ended(place, keys)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, *HEAD])
        for row in rows:
            run = row.run or Run("")
            epochs, seconds = run.summary.epochs, run.summary.seconds
            metrics = [
                run.progress.epoch if epochs is None else epochs,
                rounded(run.took_s if seconds is None and run.has_ended else seconds, 1),
                rounded(run.summary.test_accuracy, 6),
                rounded(run.progress.metrics.best_val_accuracy, 6),
            ]
            values = [row.values.get(key) for key in keys]
            known = earlier.get(tuple(value or "" for value in values))
            told = [*values, row.host, run.run, row.state, *metrics]
            writer.writerow(told if row.run or known is None else known)


def write_picture(place: Path, name: str, rows: Sequence[Row]) -> str | None:
    """Mean and spread of every group, the best above. Returns why there is none."""
    groups = group_rows(rows)
    if not groups:
        return "no point has finished with an accuracy yet"
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed here: pip install matplotlib"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.35 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    places = list(range(len(groups)))[::-1]
    means = [100 * group.mean for group in groups]
    axes.errorbar(
        means, places, xerr=[100 * (group.sd or 0.0) for group in groups], fmt="o", capsize=3
    )
    axes.set_yticks(places, [f"{label_of(group.values)} (n={group.n})" for group in groups])
    axes.set_xlabel("accuracy, % (mean; bars: sample standard deviation over seeds)")
    axes.set_title(name)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(place, dpi=120)
    return None


def tell_files(display: Display, directory: Path, name: str, rows: Sequence[Row]) -> None:
    """Write sweep.csv and sweep.png, and say where they are."""
    write_csv(directory / "sweep.csv", rows)
    problem = write_picture(directory / "sweep.png", name, rows)
    display.line(f"  {show(directory / 'sweep.csv')}{'' if problem else ', sweep.png'}")
    if problem:
        display.note(f"no picture: {problem}")
