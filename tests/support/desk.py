"""A project with a fetched run that is to be handed in."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from remote.errors import TransferFailed
from remote.link.session import Project
from remote.project.options import SubmitOptions
from remote.records import Settings
from remote.screen.display import Display
from remote.submission import submit
from tests.support.project import make_tree

SUMMARY: dict[str, Any] = {
    "test_accuracy": 0.9123,
    "test_images": 10000,
    "epochs": 3,
    "max_epochs": 3,
    "seconds": 75.0,
    "seed": 1,
    "per_class": {"cat": 0.85, "dog": None},
    "data": {"kind": "folder", "sha256": "ab" * 32, "train": 9, "validation": 1, "test": 2},
    "config": {
        "recipe": "fast",
        "data": "/home/wang/cifar",
        "run_dir": "/home/wang/runs/r",
        "devices": "0",
        "learning_rate": 1e-05,
    },
    "versions": {"torch": "2.14.1"},
    "devices": ["1 GPU(s)", "  gpu 0: H100"],
}


RUN = "20261124-101500-fast-ab12"


class Desk:
    """A project with a fetched run, and what `submit` says of it."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "results"
        self.project = Project(folder, Settings(dest="results"))
        self.dest = folder / "submission"
        self.told = ""
        source = {"trainer/train.py": "print(1)\n", "odd\nname\\x": "1", "run.sh": "true\n"}
        files: dict[str, Any] = {f"source/{name}": content for name, content in source.items()}
        files |= {
            "weights.pt": b"w" * 99,
            "train.log": "saved in /home/wang/runs/r\n",
            "logs/events": b"\0e",
            "curves.png": b"p",
        }
        self.run = make_tree(
            self.results / RUN,
            {
                **files,
                "summary.json": json.dumps(SUMMARY),
                "run.json": json.dumps({"name": "mine"}),
            },
        )

    def submit(self, **options: Any) -> int:
        given = {
            "run": "latest",
            "dest": str(self.dest),
            "data": "synthetic",
            "push": None,
            "github": None,
            "accept": (),
            "yes": False,
        }
        out = io.StringIO()
        try:
            return submit.submit(
                self.project,
                Display(out=out, notes=out),
                None,
                SubmitOptions(**{**given, **options}),
            )
        finally:
            self.told = out.getvalue()

    def verify(self, folder: Path | None = None) -> str:
        out = io.StringIO()
        try:
            assert (
                submit.verify(
                    self.project, Display(out=out, notes=out), str(folder or self.dest), None
                )
                == 0
            )
        except TransferFailed as error:
            return out.getvalue() + str(error)
        return ""


def measured(monkeypatch: pytest.MonkeyPatch, accuracy: float, sha256: str = "ab" * 32) -> None:
    def evaluate(project: Project, place: Path, data: str) -> Mapping[str, Any]:
        assert (place / "weights.pt").read_bytes() == b"w" * 99
        return {"test_accuracy": accuracy, "data_sha256": sha256}

    monkeypatch.setattr(submit, "evaluate_here", evaluate)
