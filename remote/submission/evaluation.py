"""A bundle's weights, evaluated again: here, or by the server that made them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remote.deploy.deploy import show_steps
from remote.errors import NotFound, TransferFailed, UsageError
from remote.link.answers import Evaluated
from remote.link.session import Project, Session
from remote.project.results import load, read_mapping
from remote.records import Asked
from remote.screen.text import one_line
from remote.submission import bundle


def default_data(claim: bundle.Claim) -> str:
    data = str(dict(claim.summary.get("config") or {}).get("data") or "")
    if data == "synthetic" or os.path.exists(data):
        return data
    raise UsageError(
        "the weights must be evaluated again, and the images are not here",
        step="submit",
        remedy=(
            "name them: --data PATH (archive or folder), or have it done on the server: fab -H …"
            " submit"
        ),
    )


def evaluate_here(project: Project, place: Path, data: str) -> Mapping[str, Any]:
    """What this project's own code measures with the bundle's weights. Raises UsageError or
    TransferFailed.

    Not the bundle's code: it came from a server, or from whoever handed it in, and must run nothing
    here.
    """
    if importlib.util.find_spec("torch") is None:
        text = "evaluating the weights needs torch, which is not installed here"
        remedy = "fab -H … submit has it done on the server, or: pip install -r requirements.txt"
        raise UsageError(text, step="submit", remedy=remedy)
    where = data if data == "synthetic" else str(Path(data).expanduser().absolute())
    if where != "synthetic" and not os.path.exists(where):  # the trainer would download to it
        raise NotFound(
            f"{data}: no such file or folder here", step="submit", remedy="look at --data"
        )
    weights = str((place / "weights.pt").absolute())
    words = ["trainer.evaluate", "--checkpoint", weights, "--data", where, "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=project.directory,
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    try:
        told = json.loads(done.stdout.splitlines()[-1])
        return {
            "test_accuracy": float(told["test_accuracy"]),
            **{key: told.get(key) for key in ("test_images", "data_sha256")},
        }
    except (IndexError, ValueError, KeyError, TypeError):
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        text = one_line(last.removeprefix("error: "), 300)
        raise TransferFailed(
            f"the weights can't be evaluated: {text}", step="submit", remedy="look at --data"
        ) from None


def evaluate_there(
    session: Session, source: Path, draft: Path, data: str | None
) -> Mapping[str, Any]:
    """The same by the server that made the run, with the run's own release. Raises NotFound where
    it has lost the run or the images."""
    place = data or data_of(source)
    told = session.ask(
        Evaluated,
        show_steps(session),
        run=source.name,
        weights_sha256=bundle.digest(draft / "weights.pt"),
        data=place,
    ).told
    session.display.clear()
    if told.test_accuracy is None:
        raise TransferFailed("the server tells no accuracy", host=session.host, step="submit")
    return {**dataclasses.asdict(told), "where": "on the server"}


def data_of(run: Path) -> str:
    """Where the run had its images on the server: of its command, else of its configuration."""
    argv = load(Asked, run).argv
    if "--data" in argv[:-1]:
        return argv[argv.index("--data") + 1]
    return str(dict(read_mapping(run, "summary.json").get("config") or {}).get("data") or "")
