"""Runs as the server tells them, and how scripts get them."""

from __future__ import annotations

import dataclasses
from typing import Any

from remote.agent.shared.reading import tell
from remote.errors import RunFailed
from remote.link.answers import Runs
from remote.link.session import Session
from remote.records import Run
from remote.screen.text import duration
from remote.ssh.target import Target, typed_together


def list_runs(session: Session, run: str | None = None) -> list[Run]:
    """All of the project's, the newest first; or the one of that name."""
    return list((session.ask(Runs, run=run) if run is not None else session.ask(Runs)).runs)


def run_json(run: Run, host: str, shutdown_s: float | None = None) -> dict[str, Any]:
    """The form of `status --json`."""
    asked, detail, progress = run.asked, run.detail, run.progress
    return {
        "run": run.run,
        "state": run.state,
        "epoch": progress.epoch,
        "max_epochs": progress.max_epochs,
        "host": host,
        "reason": run.reason,
        "cause": detail.cause,
        "exit_code": detail.exit_code,
        "name": asked.name,
        "recipe": asked.recipe,
        "command": asked.command,
        "arguments": list(asked.arguments),
        "val_accuracy": progress.metrics.val_accuracy,
        "best_val_accuracy": progress.metrics.best_val_accuracy,
        "test_accuracy": run.summary.test_accuracy,
        "seconds_left": progress.seconds_left if run.state == "running" else None,
        "gpus": None if asked.gpus is None else list(asked.gpus),
        "waiting": detail.waiting or None if run.state == "queued" else None,
        "sweep": asked.sweep or None,
        "point": dict(asked.point),
        "step": detail.step,
        "release": run.release,
        "asking": run.state == "running" and detail.asking,
        "created": detail.since,
        "started": detail.started,
        "ended": detail.ended,
        "server": run.host,
        "elsewhere": detail.elsewhere,
        "unsupervised": detail.unsupervised,
        "fetched": detail.fetched,
        "checkpointed": detail.checkpointed,
        "attempts": tell(detail.attempts),
        "notified": detail.notified,
        "shutdown_s": shutdown_s,
        "nodes": list(detail.nodes or asked.nodes.hosts) or None,
        "rank": asked.nodes.rank if asked.nodes.count > 1 else None,
    }


def raise_if_failed(run: Run, session: Session) -> None:
    """Raises RunFailed."""
    if run.state == "failed":
        text = f"{run.run} failed: {run.reason or 'no reason is known'}"
        raise run_failed(run, session, text, f"fab -H {session.typed} logs --run {run.run}")


def run_failed(run: Run, session: Session, text: str, remedy: str) -> RunFailed:
    """With the run, for scripts."""
    failed = RunFailed(text, host=session.host, remedy=remedy)
    failed.details["run"] = run_json(run, session.host)
    return failed


def state_line(run: Run) -> str:
    return f"{run.run}: {run.state}{f': {run.reason}' if run.reason else ''}"


def tell_resume(session: Session, run: Run) -> None:
    session.display.line(resume_hint(run, way_on(run, session.target, session.together)))


def resume_hint(run: Run, typed: str) -> str:
    """What an end has cost, and what goes on, `typed`."""
    saved, told = run.detail.checkpointed, run.progress.time
    if not run.has_begun:
        if run.asked.is_trainer:
            return f"{run.run} had not begun: train again"
        return f"{run.run} had not begun; to start it:\n  {typed}"
    if saved is None and run.asked.is_trainer and not run.asked.nodes.rank:
        return f"{run.run} has saved no checkpoint: train again"
    place = "" if saved is None else " from its newest checkpoint"
    lost = told - saved if told is not None and saved is not None else 0.0
    cost = f", {duration(lost)} of training before its end are lost" if lost >= 1 else ""
    return f"to go on{place}{cost}:\n  {typed}"


def way_on(run: Run, target: Target, together: str | None = None) -> str:
    """What is typed to go on with it. A training on several hosts goes on with all of them: as they
    were typed at its start, else as they are now, `together`."""
    hosts, typed = run.asked.nodes.hosts, target.typed
    if target.spec in hosts:
        typed = typed_together([dataclasses.replace(target, spec=host) for host in hosts])
    elif hosts and together is None:
        named = ", ".join(hosts)
        return f"it was on {named}: name all of them to train --resume {run.run}, the first first"
    elif hosts:
        typed = together or typed
    return f"fab -H {typed} train --resume {run.run}"
