"""What people see, at every width, with and without a terminal."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from remote.errors import UsageError
from remote.records import GpuUse, Metrics, Progress, Step
from remote.screen import display
from remote.screen.activity import Transfer
from remote.screen.display import Display
from remote.screen.tables import Column, build_table
from remote.screen.text import UNKNOWN, brief, duration, moment, percent, show, size
from remote.screen.training import KEYS, TrainingView, sparkline
from remote.ssh.target import Target
from remote.tasks.run_tables import COLUMNS, show_status

MIB = 1 << 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")


def drawn(what: object, width: int, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    with console.capture() as captured:
        console.print(what)
    return captured.get().rstrip("\n").split("\n")


NAMES = st.text(st.sampled_from("ab-9猫训练é "), min_size=1, max_size=60)


@given(st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=5), st.integers(60, 200))
def test_a_table_has_one_line_a_row_and_fits(names: list[tuple[str, ...]], width: int) -> None:
    rows = [
        [*pair, "running", "26 Nov 14:03", "13h20m", "150/150", "test 91.23%", "0, 1", remark]
        for *pair, remark in ([name, recipe, remark] for name, recipe, remark in names)
    ]
    table, left_out = build_table(COLUMNS[1:], rows, width)
    lines = drawn(table, width)
    assert len(lines) == len(rows) + 1
    assert all(cell_len(line) <= width for line in lines)
    if width >= 80:
        assert not {"state", "started", "took", "epoch", "accuracy", "command"} - set(
            lines[0].split()
        ), left_out


def test_what_names_a_run_is_whole_before_a_remark_is_shown() -> None:
    run, remark = "20261129-104556-first-try-cc3a", "out of memory on the GPU"
    row = [run, "demo", "failed", "10:45", "12m", None, None, None, remark]
    assert run in drawn(build_table(COLUMNS[1:], [row], 80)[0], 80)[1]
    assert remark in drawn(build_table(COLUMNS[1:], [row], 120)[0], 120)[1]


def test_a_pipe_gets_whole_cells_and_no_sign_of_a_terminal() -> None:
    out = io.StringIO()
    shown = Display(out=out, notes=io.StringIO())
    name = "n" * 300
    shown.table([Column("a", least=3), Column("b", spare=1)], [[name[:200], "x"], ["y", None]])
    assert out.getvalue() == f"a{' ' * 199}  b\n{'n' * 200}  x\ny{' ' * 199}  –\n"


@pytest.mark.parametrize(
    ("environment", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_are_for_terminals_that_want_them(
    terminal: None, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], colour: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = Terminal()
    shown = Display(out=out, notes=out)
    shown.error("host: it failed — fab -H gpu status")
    shown.note("a note [with brackets] :smile:")
    shown.table([Column("state", style=lambda cell: "red")], [["failed"]])
    text = out.getvalue()
    assert ("\x1b[31m" in text) is colour and ("\x1b[36m" in text) is colour
    assert "a note [with brackets] :smile:\n" in re.sub(r"\x1b\[[0-9;]*m", "", text)
    dumb = environment.get("TERM") == "dumb"
    assert shown.live is not dumb and ("\x1b" not in text or not dumb)


def test_only_base_colours_are_used_so_that_light_and_dark_terminals_show_them(
    terminal: None,
) -> None:
    out = Terminal()
    shown = Display(out=out, notes=out)
    shown.error("x")
    shown.note("warning: y")
    shown.line("  ok       git   z")
    shown.show(TrainingView("r", "h", "running", Progress(step=1, total_steps=2)))
    bar = Transfer("fetching", 100)
    bar.arrived(30)
    shown.show(bar)
    found = re.findall(r"\x1b\[([0-9;]*)m", out.getvalue())
    told = {code for codes in found for code in codes.split(";")} - {"", "0", "1", "2"}
    assert told and told <= {"31", "32", "33", "35", "36", "39"}, told


@pytest.mark.parametrize("keyboard", [True, False])
def test_a_queued_run_tells_why_it_waits_and_never_that_it_trains(
    terminal: None, keyboard: bool
) -> None:
    out = Terminal()
    view = TrainingView("r", "h", "queued", waiting=f"waits for a GPU: {'gpu 0 is busy ' * 12}end")
    view.keyboard = keyboard
    Display(out=out, notes=out).show(view)
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert " ".join(text.split()).count("gpu 0 is busy") == 12 and " end" in text
    assert "it starts by itself" in text and "training goes on" not in text


def test_a_long_line_is_left_to_the_terminal_so_that_it_can_be_copied(terminal: None) -> None:
    out = Terminal()
    command = f"fab -H gpu train --resume {'r' * 90}"
    Display(out=out, notes=out).line(command)
    assert re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()) == command + "\n"


def test_hints_of_the_server_name_the_host_as_typed() -> None:
    err = io.StringIO()
    shown = Display(out=io.StringIO(), notes=err)
    shown.fab = "fab -H me@gpu:22"
    shown.error("no run — fab -H … status lists all; fab … clean")
    assert err.getvalue() == (
        "error: no run — fab -H me@gpu:22 status lists all; fab -H me@gpu:22 clean\n"
    )


def test_a_transfer_is_told_every_30_s_where_nothing_can_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, err = [1000.0], io.StringIO()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = Display(out=io.StringIO(), notes=err)
    for second in range(100):
        now[0] = 1000.0 + second
        shown.transfer("fetching", second * 2 * MIB, 560 * MIB)
    assert err.getvalue().splitlines() == [
        "fetching  60.0 MiB of 560.0 MiB  2.0 MiB/s  4 min 10 s left",
        "fetching  120.0 MiB of 560.0 MiB  2.0 MiB/s  3 min 40 s left",
        "fetching  180.0 MiB of 560.0 MiB  2.0 MiB/s  3 min 10 s left",
    ]


def test_a_rate_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = Transfer("fetching", 1000 * MIB)
    for second in range(60):
        now[0] = float(second)
        bar.arrived(min(second, 30) * 10 * MIB + max(0, second - 30) * MIB)
    assert bar.rate == MIB


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_transfer_s_bar_fits_and_shows_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = Transfer("fetching", 560 * MIB)
    for second in range(10):
        now[0] = float(second)
        bar.arrived(second * 3 * MIB)
    (line,) = drawn(bar, width)
    assert line.startswith("fetching ") and cell_len(line) <= width
    assert "27.0 MiB of 560.0 MiB  3.0 MiB/s" in line and ("left" in line or width == 60)


def test_steps_are_a_tree_on_a_terminal_and_lines_elsewhere(terminal: None) -> None:
    steps = [Step(True, "code changed: 3 files sent"), Step(False, "environment kept")]
    pipe, screen = io.StringIO(), Terminal()
    for out in (pipe, screen):
        shown = Display(out=out, notes=out)
        for step in steps:
            shown.step(step)
        shown.steps("gpu")
    assert pipe.getvalue() == "code changed: 3 files sent\nenvironment kept\n"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert plain.splitlines() == [
        "gpu",
        "├── ✓ code changed: 3 files sent",
        "└── = environment kept",
    ]


def test_what_goes_on_stands_below_what_is_done(terminal: None) -> None:
    out = Terminal()
    shown = Display(out=out, notes=out)
    shown.step(Step(False, "code kept"))
    shown.doing("packages (10 s)  Collecting\ntorch")
    assert shown.region is not None
    lines = drawn(shown.region.render(), 80)
    assert lines[:2] == ["so far", "├── = code kept"]
    assert re.fullmatch(r"└── \S packages \(10 s\)  Collecting torch", lines[2]), lines
    shown.transfer("sending", 1, 2)
    assert "sending" in drawn(shown.region.render(), 80)[2]
    shown.clear()
    assert shown.region is None and out.getvalue().endswith("\x1b[2K")


def test_a_step_of_a_long_operation_is_a_line_where_nothing_can_move() -> None:
    err = io.StringIO()
    shown = Display(out=io.StringIO(), notes=err)
    for step, line in (("packages", "a"), ("packages", "b"), ("prove", "c")):
        shown.doing(f"{step}  {line}", step)
    assert err.getvalue() == "  packages  a\n  prove  c\n"


def test_what_was_done_before_an_error_is_told_before_it() -> None:
    out = io.StringIO()
    shown = Display(out=out, notes=out)
    shown.step(Step(True, "code changed"))
    shown.error("the environment failed")
    assert out.getvalue() == "code changed\nerror: the environment failed\n"


def view(gpus: int = 2) -> TrainingView:
    metrics = Metrics(train_loss=0.4, val_accuracy=0.9, best_val_accuracy=0.9)
    shown = TrainingView("20261128-040537-" + "long" * 12 + "-b0a0", "user@a-long-host", "running")
    shown.tell(Progress("fitting", 1.0, 12, 150, 300, 1000, 3500.0, 900.0, metrics))
    shown.curves = {"train_loss": [2.0, 1.0, 0.4], "val_accuracy": [0.1, 0.7, 0.9]}
    shown.gpus = {str(index): GpuUse(97.0, 70211.0, 81559.0, 640.0) for index in range(gpus)}
    shown.write("".join(f"line {number}\n" for number in range(99)) + "猫" * 200 + "\n")
    return shown


@pytest.mark.parametrize(("width", "height"), [(60, 24), (80, 24), (120, 40), (200, 50)])
def test_the_live_screen_fills_the_terminal_and_no_line_wraps(width: int, height: int) -> None:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    rendered = console.render_lines(view(), console.options.update(height=height), pad=False)
    lines = ["".join(part.text for part in line) for line in rendered]
    assert len(lines) == height and all(cell_len(line) <= width for line in lines)
    text = "\n".join(lines)
    for part in ("running", "30%  epoch 12/150  15 min 0 s left", "loss 0.400", "3500 images/s"):
        assert part in text
    assert "2.000 → 0.400" in text and "10.0% → 90.0%" in text
    assert "97%  68.6 of 79.6 GiB  640 W" in text
    assert lines[-1].rstrip() == KEYS[:width] and lines[-2].startswith("猫猫")
    assert lines[-3].rstrip() == "line 98"


def test_a_line_is_broken_at_words_and_what_is_typed_stays_whole(terminal: None) -> None:
    screen = Terminal()
    told = Display(out=screen, notes=screen)
    typed = "fab -H root@region-1.example.com:41022 train --resume latest"
    told.note(f"{'word ' * 14}and then {typed} goes on where it was stopped, at its checkpoint")
    told.note(f"  {typed} --run {'x' * 40}")
    lines = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue()).splitlines()
    assert lines[0] == f"{'word ' * 14}and then" and lines[1].startswith(f"{typed} goes on")
    assert lines[2:] == ["was stopped, at its checkpoint", f"  {typed} --run {'x' * 40}"]


def test_many_gpus_leave_room_for_the_log() -> None:
    lines = drawn(view(gpus=16), 80)
    assert "and 8 more GPUs" in lines and any(line.startswith("line 9") for line in lines)


def test_unknown_figures_are_left_out_of_the_live_screen() -> None:
    shown = TrainingView("r", "h", "running")
    assert "no progress is told yet" in drawn(shown, 80)[1]
    shown.tell(Progress(epoch=2, metrics=Metrics(train_loss=float("nan"))))
    shown.gpus = {"0": GpuUse()}
    text = "\n".join(drawn(shown, 80))
    assert "epoch 2" in text and "left" not in text.replace(KEYS, "") and "gpu0" in text


@given(st.lists(st.floats(-1e9, 1e9), max_size=300), st.integers(1, 60))
def test_a_sparkline_is_as_long_as_its_values_or_the_room(values: list[float], room: int) -> None:
    assert len(sparkline(values, room)) == min(len(values), room)


def test_sparklines_show_rise_and_ends() -> None:
    assert sparkline([1, 2, 3, 4], 4) == "▁▃▆█" and sparkline([5, 5], 9) == "▁▁"
    assert sparkline([50], 5, (0.0, 100.0)) == "▅" and sparkline([1, float("nan"), 2], 9) == "▁█"


def test_figures_as_people_read_them() -> None:
    assert [brief(s) for s in (5, 75, 4800, 90061, None)] == ["5s", "1m15s", "1h20m", "1d01h", None]
    assert [duration(s) for s in (5, 75, 4800, -1)] == ["5 s", "1 min 15 s", "1 h 20 min", UNKNOWN]
    assert [size(n) for n in (0, 1536, 3 << 40)] == ["0 B", "1.5 KiB", "3072.0 GiB"]
    assert percent(0.9123) == "91.23%" and percent(True) == UNKNOWN and show("") == UNKNOWN
    now = time.time()
    assert moment(now) == time.strftime("%H:%M", time.localtime(now)) and moment(0) is None
    assert re.fullmatch(r"\d\d \w+ \d\d:\d\d", moment(now - 3 * 86400) or "")


def test_nothing_is_drawn_for_a_pipe_and_rich_is_not_loaded() -> None:
    code = (
        "import sys; from remote.screen.display import Display; shown = Display();"
        "shown.line('x'); shown.doing('y'); shown.transfer('z', 1, 2); shown.clear();"
        "assert 'rich' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "x\n", "")
    assert display.EVERY_S == 30.0


def test_no_run_is_offered_where_none_can_be_started() -> None:
    out = io.StringIO()
    show_status(Display(out=out), [(Target("gpu"), [], None)], "there is no trainer here")
    show_status(Display(out=out), [(Target("gpu"), [], None)])
    first, second = out.getvalue().splitlines()
    assert first == "no runs yet; there is no trainer here" and "fab -H gpu train" in second


def test_an_error_is_one_line_whatever_a_file_is_called() -> None:
    notes = io.StringIO()
    Display(out=io.StringIO(), notes=notes).error(UsageError("there is no a\nb here"))
    assert notes.getvalue() == "error: there is no a b here\n"
