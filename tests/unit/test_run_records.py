"""What a run's files say, in whatever form they have come to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remote.agent.root.run_json import read_asked, write_asked
from remote.agent.shared.reading import differing, read
from remote.agent.shared.run_records import Asked, Nodes, SlurmJob


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '"x"'])
def test_a_damaged_file_says_nothing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert read_asked(str(tmp_path)) == Asked()


@pytest.mark.parametrize(
    "part",
    [
        {"argv": "true"},
        {"argv": ["a", 1]},
        {"gpus": {"0": "u"}},
        {"max_restarts": True},
        {"max_restarts": "3"},
        {"queue": 1},
        {"finish": "never"},
        {"fields": {"lr": 0.1}},
        {"nodes": [2, 0]},
        {"slurm": {"limit_s": "8h"}},
        {"name": None},
        {"of tomorrow": 1},
    ],
)
def test_a_part_of_another_kind_counts_as_left_out(part: dict[str, Any]) -> None:
    assert read(Asked, part) == Asked()
    assert read(Asked, {"who": "me", **part}) == Asked(who="me")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    asked = Asked(
        name="a",
        argv=("sh", "-c", ""),
        finish="exit",
        gpus=(),
        wanted_gpus=0,
        limit_s=60,
        local=({"places": ["."]}, "libs/x"),
        nodes=Nodes(2, 0, ("a", "b"), "k"),
        slurm=SlurmJob(("--mem=1",), (), 1.5),
    )
    write_asked(str(tmp_path), asked)
    assert read_asked(str(tmp_path)) == asked._replace(local=({"places": ["."]}, "libs/x"))
    told = json.loads((tmp_path / "run.json").read_text())
    assert "queue" not in told and "home" not in told, "what is not set is left out"
    assert told["finish"] == "exit", "an older laptop hands in no run that does not say so"
    # Whoever is older asks a part for all that belongs to it.
    assert told["nodes"]["rank"] == 0 and told["slurm"]["limit_s"] == 1.5


def test_what_differs_can_be_taken_back() -> None:
    before = Asked(name="a", max_restarts=2, gpus=("u",), queue=True)
    now = Asked(name="a", gpus=None, nodes=Nodes(2))
    changes = differing(now, before)
    assert "name" not in changes and json.loads(json.dumps(changes)) == changes
    assert read(Asked, {**differing(before), **changes}) == now
