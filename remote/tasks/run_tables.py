"""How runs are shown: the table of `status`, what a fetch brought, and both as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from remote.errors import RemoteError
from remote.records import Run, Summary
from remote.runs.listing import run_json
from remote.screen.display import Display, duration, percent, show, size
from remote.screen.text import one_line
from remote.ssh.target import Target
from remote.transfer.receiving import Fetched

# Per host what came of a question to it, or why nothing did.
LONGEST_COMMAND = 36
Answers = Sequence[tuple[Target, Any, RemoteError | None]]


def show_status(display: Display, answers: Answers) -> None:
    rows: list[list[object]] = []
    for target, runs, error in answers:
        if error:
            rows.append([target.spec, None, None, "unreachable", None, None, None, error.message])
        rows += [[target.spec, *status_cells(run)] for run in runs or []]
    if not rows:
        display.line("no runs yet; start one: fab -H … train")
        return
    head = ["host", "run", "command", "state", "epoch", "accuracy", "gpus", "remark"]
    if len(answers) == 1:
        head, rows = head[1:], [row[1:] for row in rows]
    display.table(head, rows)
    for target, runs, _ in answers:
        for run in runs or []:
            if run.state == "running" and run.detail.asking:
                display.note(
                    f"{run.run} waits for an answer in its terminal: fab -H {target.typed} attach"
                    f" --run {run.run}"
                )
        # Of the newest one, which is what a person is about to go on with.
        if runs and runs[0].state in ("failed", "stopped") and not runs[0].detail.elsewhere:
            display.note(resume_hint(runs[0], target.spec))


def status_cells(run: Run) -> list[object]:
    progress, detail = run.progress, run.detail
    epoch, total, best = progress.epoch, progress.max_epochs, progress.metrics.best_val_accuracy
    accuracy = run.summary.test_accuracy
    shown = None if best is None else f"val {percent(best)}"
    if accuracy is not None:
        shown = f"test {percent(accuracy)}{run.summary.beside_accuracy}"
    gpus = run.asked.gpu_names or run.asked.gpus
    remark = run.reason
    if run.state == "queued" and detail.waiting:
        remark = detail.waiting
    if run.state == "running" and not run.reason and progress.seconds_left is not None:
        remark = f"{duration(progress.seconds_left)} left"
    if run.state == "running" and detail.asking:
        remark = f"waits for input: {one_line(detail.line, 60)}"
    if detail.attempts:
        remark = f"attempt {len(detail.attempts) + 1}{f', {remark}' if remark else ''}"
    return [
        run.run,
        command_cell(run),
        run.state,
        (f"{show(epoch)}/{show(total)}" if total else show(epoch)) if epoch is not None else None,
        shown,
        ", ".join(gpus) if gpus is not None else None,
        remark,
    ]


def command_cell(run: Run) -> str | None:
    """Our trainer's recipe; else the command with its arguments, its middle left out where it is
    long."""
    if run.asked.recipe:
        return run.asked.recipe
    line = [run.asked.command, *map(shlex.quote, run.asked.arguments)]
    text = one_line(" ".join(line).strip(), 400)
    return (
        text
        if len(text) <= LONGEST_COMMAND
        else f"{text[: LONGEST_COMMAND - 17]}…{text[-16:]}"
        if text
        else None
    )


def resume_hint(run: Run, host: str) -> str:
    """What an end has cost, and which command goes on."""
    saved, told = run.detail.checkpointed, run.progress.time
    if saved is None:
        if run.asked.is_trainer:
            return f"{run.run} has saved no checkpoint: train again"
        return f"go on with {run.run}: fab -H {host} train --resume {run.run}"
    lost = told - saved if told is not None else 0.0
    cost = f", {duration(lost)} of training before its end are lost" if lost >= 1 else ""
    return (
        f"go on with {run.run} from its newest checkpoint{cost}: fab -H {host} train --resume"
        f" {run.run}"
    )


def status_json(answers: Answers) -> list[dict[str, Any]]:
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
            rows += [run_json(run, target.spec) for run in runs]
    return sorted(
        rows,
        key=lambda row: (row["run"] is None, row.get("created") or 0.0, str(row["run"])),
        reverse=True,
    )


def show_fetched(display: Display, fetched: Fetched) -> None:
    run = fetched.run
    amount = (
        f"{fetched.received / 2**20:.1f} MiB received, {fetched.changed} of {fetched.files} files"
        " new or grown"
    )
    display.line(
        f"{run.run}: {amount if fetched.changed else 'nothing to fetch, what is here is as there'};"
        " verified by sha256"
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
        _, _, state, epoch, accuracy, _, remark = status_cells(run)
        display.line(f"  state          {state}{f': {remark}' if remark else ''}")
        if epoch or accuracy:
            display.line(f"  epoch          {show(epoch)}, {show(accuracy)}")
    display.line(f"  results        {fetched.path}")
    if run.state in ("queued", "running"):
        display.line("fetch again when it has ended; only what is new will be transferred")
    else:
        for path, why in list(fetched.gone.items())[:5]:
            display.note(
                f"{path} can't be read on the server: {why}"
                if why
                else f"{path} vanished on the server meanwhile; fetch again"
            )
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
        "left": [
            {"path": row.path, "size": row.size, "why": row.why, "lost": row.lost}
            for row in fetched.left
        ],
    }
