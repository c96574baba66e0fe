"""Records in JSON: what a file of the server's holds, whoever wrote it, and in whatever state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.agent.environments.environments import describe_environment
from remote.agent.root.paths import Layout
from remote.agent.shared.build_plan import BuildPlan, TorchChoice
from remote.agent.shared.environment import Environment, Proof, Signature, Torch
from remote.agent.shared.reading import read, tell

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)
KEY = "0" * 16
MADE = Environment(
    KEY,
    "venv",
    wanted={"torch": "auto"},
    names=("torch",),
    version="3.11.7",
    python="/v/bin/python",
    prefix="/v",
    needs_torch=True,
    packages={"torch": "2.5"},
    torch=Torch("2.5", "12.4"),
    built=1.5,
    signature=Signature((1, 2), {"/v/lib": [1, "a", None]}),
)


def test_a_record_is_read_as_it_was_told() -> None:
    for record in (
        MADE._replace(proofs=(Proof(True, True, gpu_uuids=("GPU-1",)), Proof(reason="no"))),
        BuildPlan(KEY, "overlay", install=("a",), torch=TorchChoice("cu126", requirements=("b",))),
    ):
        assert read(type(record), json.loads(json.dumps(tell(record)))) == record


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, Environment()),
        ({"key": 7, "needs_torch": 1, "names": "torch", "wanted": []}, Environment()),
        ({"torch": "2.5", "signature": None, "proofs": [3, None]}, Environment()),
        ({"built": 3, "seconds": 2, "unheard": 1}, Environment(built=3, seconds=2)),
        ({"torch": {"cuda": "12.4"}}, Environment(torch=Torch(cuda="12.4"))),
        ({"proofs": [{"ok": True}, 3]}, Environment(proofs=(Proof(ok=True),))),
    ],
)
def test_what_is_missing_or_of_another_kind_has_the_default(
    told: object, expected: Environment
) -> None:
    assert read(Environment, told) == expected


@given(st.dictionaries(st.sampled_from(Environment._fields), ANYTHING) | ANYTHING)
def test_nothing_that_a_file_holds_is_an_error(told: Any) -> None:
    assert isinstance(read(Environment, told), Environment)


def test_what_a_look_at_an_environment_tells_is_not_in_its_file(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    folder = Path(layout.environment(KEY))
    folder.mkdir(parents=True)
    kept = MADE._replace(ready=True, valid=True, proofs=(Proof(True),)).to_json()
    assert not {"ready", "building", "valid", "changed", "proofs"} & {*kept}
    (folder / "env.json").write_text(json.dumps(kept))
    begun = describe_environment(layout, KEY)
    assert begun is not None and (begun.ready, begun.valid) == (False, False)
    (folder / "ready").touch()
    made = describe_environment(layout, KEY)
    assert made is not None and made.ready and made.changed == "/v/bin/python is gone"


def test_a_file_of_which_parts_are_damaged_is_an_environment_to_be_made_anew(
    tmp_path: Path,
) -> None:
    layout = Layout(str(tmp_path))
    folder = Path(layout.environment(KEY))
    folder.mkdir(parents=True)
    python = folder / "python"
    python.touch()
    told = {"python": str(python), "signature": 5, "proofs": {}, "version": None}
    (folder / "env.json").write_text(json.dumps(told))
    (folder / "proofs.json").write_text('{"proofs": 3}')
    (folder / "ready").touch()
    made = describe_environment(layout, KEY)
    assert made is not None and (made.valid, made.proofs) == (False, ())
    assert made.changed == "it was recorded without a signature"
