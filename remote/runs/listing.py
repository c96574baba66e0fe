"""Runs as the server tells them, and how scripts get them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remote.errors import NotFound, ProtocolError, RunFailed
from remote.link.session import Session
from remote.records import Run


def parse_run(value: Any) -> Run:
    """A run as the agent describes it; raises ProtocolError for anything else."""
    if not isinstance(value, Mapping) or not isinstance(value.get("run"), str):
        raise ProtocolError("the server's list of runs has the wrong form")

    def mapping(name: str) -> Mapping[str, Any]:
        found = value.get(name)
        return found if isinstance(found, Mapping) else {}

    def text(name: str) -> str | None:
        found = value.get(name)
        return found if isinstance(found, str) else None

    return Run(
        run=value["run"],
        state=text("state") or "unknown",
        reason=text("reason"),
        host=text("host"),
        asked=mapping("asked"),
        progress=mapping("progress"),
        summary=mapping("summary"),
        detail=mapping("detail"),
        path=text("path") or "",
    )


def list_runs(session: Session, run: str | None = None) -> list[Run]:
    answer = session.call("runs", run=run) if run is not None else session.call("runs")
    found = answer.get("runs")
    return [parse_run(item) for item in found] if isinstance(found, list) else []


def _time(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def run_json(run: Run, host: str) -> dict[str, Any]:
    """The form of `status --json`."""
    metrics = (
        run.progress.get("metrics") if isinstance(run.progress.get("metrics"), Mapping) else {}
    )
    assert isinstance(metrics, Mapping)
    return {
        "run": run.run,
        "state": run.state,
        "epoch": run.progress.get("epoch"),
        "max_epochs": run.progress.get("max_epochs"),
        "host": host,
        "reason": run.reason,
        "cause": run.detail.get("cause"),
        "exit_code": run.detail.get("exit_code"),
        "name": run.asked.get("name"),
        "recipe": run.asked.get("recipe"),
        "command": run.asked.get("command"),
        "arguments": run.asked.get("arguments") or [],
        "val_accuracy": metrics.get("val_accuracy"),
        "best_val_accuracy": metrics.get("best_val_accuracy"),
        "test_accuracy": run.summary.get("test_accuracy"),
        "seconds_left": run.progress.get("seconds_left") if run.state == "running" else None,
        "gpus": run.asked.get("gpus"),
        "waiting": run.detail.get("waiting") if run.state == "queued" else None,
        "asking": run.state == "running" and run.detail.get("asking") is True,
        "created": _time(run.detail.get("since")),
        "started": run.detail.get("started"),
        "ended": run.detail.get("ended"),
        "server": run.host,
        "elsewhere": run.detail.get("elsewhere") is True,
        "unsupervised": run.detail.get("unsupervised") is True,
        "fetched": run.detail.get("fetched"),
        "checkpointed": run.detail.get("checkpointed"),
        "attempts": run.detail.get("attempts") or [],
        "notified": run.detail.get("notified"),
    }


def raise_if_failed(run: Run, host: str) -> None:
    if run.state == "failed":
        raise RunFailed(
            f"{run.run} failed: {run.reason or 'no reason is known'}",
            host=host,
            remedy=f"fab -H {host} logs --run {run.run}",
        )


def only_run(runs: Sequence[Run]) -> Run:
    if not runs:
        raise NotFound(
            "no run of this project is on the server", remedy="start one: fab -H … train"
        )
    return runs[0]
