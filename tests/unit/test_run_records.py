"""What a run's files say, in whatever form they have come to be."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remote.agent.root.run_json import load, save
from remote.agent.shared.build_plan import BuildPlan
from remote.agent.shared.environment import Environment, Signature
from remote.agent.shared.reading import differing, read, tell
from remote.agent.shared.run_records import Asked, Attempt, Nodes, RunDetail, SlurmJob
from remote.records import Settings
from remote.runs.launch import next_attempt
from remote.runs.placement import Launch, Placement
from remote.runs.request import TrainRequest


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '"x"'])
def test_a_damaged_file_says_nothing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert load(Asked, str(tmp_path)) == Asked()


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


def test_null_is_kept_where_anything_may_stand() -> None:
    assert read(Signature, {"sites": {"/s": None}}) == Signature(sites={"/s": None})
    plan = BuildPlan(install=("a",), job=("--mem=1",))
    assert read(BuildPlan, json.loads(json.dumps(tell(plan)))) == plan


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
    save(asked, str(tmp_path))
    assert load(Asked, str(tmp_path)) == asked._replace(local=({"places": ["."]}, "libs/x"))
    told = json.loads((tmp_path / "run.json").read_text())
    assert "queue" not in told and "home" not in told, "what is not set is left out"
    assert told["finish"] == "exit", "an older laptop hands in no run that does not say so"
    # Whoever is older asks a part for all that belongs to it.
    assert told["nodes"]["rank"] == 0 and told["slurm"]["limit_s"] == 1.5


def test_a_state_is_read_as_whoever_wrote_it_meant_it(tmp_path: Path) -> None:
    """Older ones write null for what is not, and know fewer fields of an attempt."""
    told = {"state": "failed", "reason": None, "waiting": None, "attempts": [{"started": 1}, {}]}
    (tmp_path / "state.json").write_text(json.dumps(told | {"of tomorrow": 1, "exit_code": 0}))
    found = load(RunDetail, str(tmp_path))
    before = (Attempt(started=1), Attempt())
    assert found == RunDetail("failed", exit_code=0, attempts=before)
    assert found.starts == (1, None, None)
    save(found, str(tmp_path))
    written = json.loads((tmp_path / "state.json").read_text())
    assert {*written["attempts"][1]} == {*Attempt._fields} and "waiting" not in written
    assert load(RunDetail, str(tmp_path)) == found


def test_what_differs_can_be_taken_back() -> None:
    before = Asked(name="a", max_restarts=2, gpus=("u",), queue=True)
    now = Asked(name="a", gpus=None, nodes=Nodes(2))
    changes = differing(now, before)
    assert "name" not in changes and json.loads(json.dumps(changes)) == changes
    assert read(Asked, {**differing(before), **changes}) == now


def test_the_next_attempt_has_nothing_of_where_the_one_before_was() -> None:
    """Else a run that goes on where there is no GPU asks for that which it had, or waits for it."""
    session = SimpleNamespace(project=SimpleNamespace(settings=Settings()))
    deployed = SimpleNamespace(environment=Environment(key="k"))
    launch = Launch(cast(Any, session), TrainRequest(), cast(Any, deployed))
    before = Asked(name="n", gpus=("u",), queue=True, limit_s=60, max_restarts=3, nodes=Nodes(2))
    now = next_attempt(before, launch, Placement())
    assert (now.name, now.limit_s, now.environment_key) == ("n", 60, "k")
    assert (now.gpus, now.queue, now.max_restarts, now.nodes) == (None, False, 0, Nodes())
