"""How a sweep's points are told."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from remote.hosts.sweep_table import NOT_STARTED, UNREACHABLE, Row, show_sweep, write_csv
from remote.records import Metrics, Progress, Run, RunDetail
from remote.screen.display import Display
from remote.tasks.run_tables import status_cells


def finished(accuracy: float) -> Run:
    """Of a project of one's own, which writes no summary."""
    metrics = Metrics(best_val_accuracy=accuracy)
    detail = RunDetail(started=100.0, ended=106.24)
    return Run("r", "finished", progress=Progress(epoch=4, metrics=metrics), detail=detail)


def told(*rows: Row) -> str:
    out = io.StringIO()
    show_sweep(Display(out=out), "rates", rows)
    return out.getvalue()


def test_what_is_not_known_does_not_count_as_not_started() -> None:
    rows = [
        Row({"seed": "1"}, "a", Run("r", "running")),
        Row({"seed": "2"}, "b", None, UNREACHABLE),
        Row({"seed": "3"}, None, None, NOT_STARTED),
    ]
    assert told(*rows).endswith("rates: 3 points: 1 running, 1 unreachable, 1 not started\n")


def test_one_point_is_not_several() -> None:
    assert "rates: 1 point: 1 finished\n" in told(Row({"seed": "1"}, "a", finished(0.5)))


def test_the_best_is_so_far_until_all_points_have_ended() -> None:
    one, other = Row({"lr": "1"}, "a", finished(0.5)), Row({"lr": "2"}, "a", finished(0.25))
    assert told(one, other).endswith("best: lr=1: 50.00% (n=1)\n")
    for row in (Row({"lr": "3"}, "a", Run("r", "running")), Row({"lr": "3"}, None, None)):
        assert told(one, other, row).endswith("best so far: lr=1: 50.00% (n=1)\n")


def test_the_csv_has_time_and_figures_of_a_run_without_a_summary(tmp_path: Path) -> None:
    going = Run("r", "running", detail=RunDetail(started=100.0), now=110.0)
    points = [finished(0.1 + 0.47), going]
    write_csv(tmp_path / "s.csv", [Row({"lr": str(n)}, "a", run) for n, run in enumerate(points)])
    over, still = csv.DictReader((tmp_path / "s.csv").open())
    assert [over[name] for name in ("epochs", "seconds", "best_val_accuracy")] == [
        "4",
        "6.2",
        "0.57",
    ]
    assert still["seconds"] == ""


def test_a_run_takes_time_by_the_server_s_clock_whenever_it_last_told() -> None:
    began = RunDetail(started=100.0)
    took = [
        status_cells(Run("r", "running", progress=Progress(time=150.0), detail=began, now=now))[4]
        for now in (150.0, 175.0, 10.0)
    ]
    assert took == ["50s", "1m15s", "0s"]
