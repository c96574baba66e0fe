"""Which run a name on the command line means, on the server."""

from __future__ import annotations

from typing import cast

import pytest

from remote.agent.root.calls import Refusal
from remote.agent.root.paths import Layout
from remote.agent.run_files.records import Found, find_run
from remote.agent.shared.run_records import Asked, RunDetail

LAYOUT = cast(Layout, None)  # not read where the runs are known


def runs(*names: str) -> list[Found]:
    return [
        Found(name, "", Asked(name="mine" if "b" in name else None), RunDetail()) for name in names
    ]


@pytest.mark.parametrize("name", ["latest", "2026-b", "2026-b1", "mine"])
def test_one_run(name: str) -> None:
    assert find_run(LAYOUT, name, runs("2026-b1", "2026-a1")).run == "2026-b1"


def test_several_that_begin_so_are_listed() -> None:
    with pytest.raises(Refusal) as refused:
        find_run(LAYOUT, "2026", runs("2026-b1", "2026-a1"))
    assert refused.value.message == "2 runs begin with '2026': 2026-b1, 2026-a1"
    assert refused.value.remedy == "give more of its id"


def test_none_names_the_newest() -> None:
    with pytest.raises(Refusal, match="no run '2027'") as refused:
        find_run(LAYOUT, "2027", runs("2026-b1", "2026-a1"))
    assert "the newest is 2026-b1" in str(refused.value.remedy)
