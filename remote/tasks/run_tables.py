"""How runs are shown: the table of `status`, what was fetched, and both as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from remote.link.answers import PlannedShutdown
from remote.records import Run, Summary
from remote.runs.shutdown import plan_text
from remote.screen.display import Display
from remote.screen.tables import Column, state_style
from remote.screen.text import brief, duration, moment, one_line, percent, show, size
from remote.ssh.target import Target, typed_together
from remote.transfer.receiving import Fetched
from remote.watching.listing import resume_hint, run_json, way_on

if TYPE_CHECKING:
    from remote.tasks.entry import Answers

LONGEST_COMMAND = 36
REMARKS = 5
"""So many are told below a table that is too narrow for them."""
COLUMNS = (
    Column("host", least=12),
    Column("run", least=16, key=True),
    Column("command", least=8, spare=3),
    Column("state", style=state_style),
    Column("started", spare=4),
    Column("took", spare=2, right=True),
    Column("epoch", spare=1, right=True),
    Column("accuracy", spare=1, right=True),
    Column("gpus", least=4, spare=5),
    Column("remark", least=24, spare=6),
)


def show_status(display: Display, answers: Answers, missing: str | None = None) -> None:
    """`missing`: why no run can be started from here."""
    rows: list[list[object]] = []
    for target, runs, error in answers:
        if error:
            rows.append([target.spec, None, None, "unreachable", *[None] * 5, error.message])
        rows += [[target.spec, *status_cells(run)] for run in runs or []]
    if not rows:
        start = ", ".join(f"fab -H {target.typed} train" for target, _, _ in answers)
        display.line(f"no runs yet; {missing}" if missing else f"no runs yet; start one: {start}")
        return
    several = len(answers) > 1
    shortened = display.table(
        COLUMNS if several else COLUMNS[1:], rows if several else [row[1:] for row in rows]
    )
    if is_cut := {"remark", "run"} & {*shortened}:
        remarks = [(row[1] or row[0], row[-1]) for row in rows if row[-1] or "run" in is_cut]
        for name, remark in remarks[:REMARKS]:
            display.note(f"{name}: {one_line(str(remark), 400)}" if remark else str(name))
    led = {run.run for _, runs, _ in answers for run in runs or [] if not run.asked.nodes.rank}
    for target, runs, _ in answers:
        for run in runs or []:
            if run.state == "running" and run.detail.asking:
                display.note(f"{run.run} waits for an answer in its terminal:")
                display.note(f"  fab -H {target.typed} attach --run {run.run}")
        # Of the newest one, which is what a person is about to go on with.
        if runs and runs[0].state in ("failed", "stopped") and not runs[0].detail.elsewhere:
            together = typed_together([row[0] for row in answers]) if several else None
            if not runs[0].asked.nodes.rank or runs[0].run not in led:
                display.note(resume_hint(runs[0], way_on(runs[0], target, together)))


def show_plans(
    display: Display, targets: Sequence[Target], plans: Mapping[str, PlannedShutdown]
) -> None:
    """Of the servers that shut themselves down."""
    for target in targets:
        if target.spec in plans:
            display.note(f"{plan_text(target.spec, plans[target.spec])}; to keep it on:")
            display.note(f"  fab -H {target.typed} keep")


def status_cells(run: Run) -> list[object]:
    gpus = run.asked.gpu_names or run.asked.gpus
    return [
        run.run,
        command_cell(run),
        run.state,
        moment(run.detail.started),
        brief(run.took_s),
        epoch_cell(run),
        accuracy_cell(run),
        ", ".join(gpus) if gpus else None,
        remark_cell(run),
    ]


def epoch_cell(run: Run) -> str | None:
    """A run that has finished has told its last epoch in its summary; its progress may be older."""
    epoch, most = run.progress.epoch, run.progress.max_epochs
    if run.state == "finished":
        epoch, most = run.summary.epochs or epoch, run.summary.max_epochs or most
        epoch = None if run.progress.phase == "starting" and not run.summary.epochs else epoch
    if epoch is None:
        return None
    return f"{show(epoch)}/{show(most)}" if most else show(epoch)


def accuracy_cell(run: Run) -> str | None:
    tested, best = run.summary.test_accuracy, run.progress.metrics.best_val_accuracy
    if tested is not None:
        return f"test {percent(tested)}{run.summary.beside_accuracy}"
    return None if best is None else f"val {percent(best)}"


def remark_cell(run: Run) -> str | None:
    detail, remark = run.detail, run.reason
    if run.state == "queued" and detail.waiting:
        remark = detail.waiting
    if run.state == "running" and not run.reason and run.progress.seconds_left is not None:
        remark = f"{duration(run.progress.seconds_left)} left"
    if run.state == "running" and detail.step:
        remark = f"step {one_line(detail.step, 48)}{f', {remark}' if remark else ''}"
    if run.state == "running" and detail.asking:
        remark = f"waits for input: {one_line(detail.line, 60)}"
    if run.asked.nodes.count > 1:
        part = f"host {run.asked.nodes.rank + 1} of {run.asked.nodes.count}"
        remark = f"{part}{f', {remark}' if remark else ''}"
    if detail.attempts:
        remark = f"attempt {len(detail.attempts) + 1}{f', {remark}' if remark else ''}"
    return remark


def command_cell(run: Run) -> str | None:
    """Our trainer's recipe; else the command with its arguments, its middle left out where it is
    long."""
    if run.asked.recipe:
        return run.asked.recipe
    line = [run.asked.command, *map(shlex.quote, run.asked.arguments)]
    text = one_line(" ".join(line).strip(), 400)
    if len(text) > LONGEST_COMMAND:
        text = f"{text[: LONGEST_COMMAND - 17]}…{text[-16:]}"
    return text or None


def status_json(answers: Answers, plans: Mapping[str, PlannedShutdown]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for target, runs, error in answers:
        if error:
            down = {
                "run": None,
                "state": "unreachable",
                "epoch": None,
                "host": target.spec,
                "reason": error.message,
            }
            rows.append(down | {"exit_code": None, "error": type(error).__name__})
        else:
            plan = plans.get(target.spec)
            rows += [run_json(run, target.spec, plan.left_s if plan else None) for run in runs]
    return sorted(
        rows,
        key=lambda row: (row["run"] is None, row.get("created") or 0.0, str(row["run"])),
        reverse=True,
    )


def show_fetched(display: Display, fetched: Fetched) -> None:
    run = fetched.run
    files = f"{fetched.changed} of {fetched.files} files new or grown"
    amount = f"{size(fetched.received)} received, {files}"
    display.line(
        f"{run.run}: {amount if fetched.changed else 'nothing new to fetch'}; verified by sha256"
    )
    summary = run.summary
    if summary != Summary():
        synthetic = summary.data.kind == "synthetic"
        note = " (synthetic images: this says nothing about real ones)" if synthetic else ""
        if summary.test_accuracy is not None:
            display.line(
                f"  test accuracy  {percent(summary.test_accuracy)}{summary.beside_accuracy}{note}"
            )
        if summary.epochs is not None:
            display.line(
                f"  epochs         {show(summary.epochs)}, best {show(summary.best_epoch)}"
            )
        if summary.seconds is not None:
            display.line(f"  time           {duration(summary.seconds)}")
    else:
        remark, epoch, accuracy = remark_cell(run), epoch_cell(run), accuracy_cell(run)
        display.line(f"  state          {run.state}{f': {remark}' if remark else ''}")
        if epoch or accuracy:
            display.line(f"  epoch          {', '.join(filter(None, [epoch, accuracy]))}")
    display.line(f"  results        {fetched.path}")
    if run.state in ("queued", "running"):
        display.line("fetch again when it has ended; only what is new will be transferred")
    else:
        for path, why in list(fetched.gone.items())[:5]:
            if why:
                display.note(f"{path} can't be read on the server: {why}")
            else:
                display.note(f"{path} vanished on the server meanwhile; fetch again")
    for path, kept in fetched.kept.items():
        display.note(f"{path} was changed here, and is replaced; yours is {kept} beside it")
    show_left(display, fetched)


def show_left(display: Display, fetched: Fetched) -> None:
    """What of the run is not here, each with its size, and what that means."""
    for row in fetched.left:
        display.note(
            f"not fetched: {row.path}{f' ({size(row.size)})' if row.size else ''}: {row.why}"
        )
    if any(row.lost for row in fetched.left) and not fetched.known_complete:
        display.note("so the run is not here completely, and `clean` keeps it on the server")


def fetched_json(fetched: Fetched, host: str) -> dict[str, Any]:
    return run_json(fetched.run, host) | {
        "path": str(fetched.path),
        "files": fetched.files,
        "changed": fetched.changed,
        "received": fetched.received,
        "left": list(map(asdict, fetched.left)),
        "kept": fetched.kept,
    }
