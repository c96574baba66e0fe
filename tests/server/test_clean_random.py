"""`clean` never removes a byte that is not here: random trees, patterns, sizes and cuts."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote.agent.run_files.outputs import matches
from remote.loopback import LoopbackServer
from tests.support.faults import Lab, short_pauses, wait_until
from tests.support.project import make_tree
from tests.support.proxy import Relay

NAMES = st.sampled_from(
    ["a", "b.pt", ".hidden", "x.part", "y.tmp", "Ä ö", "out", "data", "run.json.12345678.tmp"]
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TREES = st.dictionaries(PATHS, st.integers(0, 200_000), max_size=8)


def plausible(tree: dict[str, int]) -> dict[str, int]:
    """Without files where a folder is wanted."""
    return {
        path: size
        for path, size in tree.items()
        if not any(other.startswith(path + "/") for other in tree)
    }


@pytest.fixture
def played(server: LoopbackServer) -> Iterator[Lab]:
    directory = Path(tempfile.mkdtemp())
    with Relay(server.host, server.port) as relay:
        lab = Lab(
            server,
            directory,
            relay=relay,
            name="nothing-lost",
            files={"train.sh": "echo up\n", "kept.txt": "kept"},
        )
        assert lab.task("train", name="first").code == 0
        wait_until(lambda: lab.rows()[0]["state"] == "finished")
        yield lab
    shutil.rmtree(directory, ignore_errors=True)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tree=TREES.map(plausible),
    top=TREES.map(plausible),
    patterns=st.lists(st.sampled_from(["out", "*.pt", "a", ".hidden/*"]), max_size=2),
    cuts=st.lists(st.integers(0, 400_000), max_size=2),
    late=st.booleans(),
)
def test_clean_never_removes_a_byte_that_is_not_here(
    played: Lab,
    tree: dict[str, int],
    top: dict[str, int],
    patterns: list[str],
    cuts: list[int],
    late: bool,
) -> None:
    """Random trees, patterns, sizes and cuts; after each step every byte of the run is on the
    server or here."""
    lab = played
    first = next(path for path in sorted((lab.root / "runs").iterdir()) if "-first-" in path.name)
    run = first.with_name("20260101-000000-played-0000")
    for place in (run, lab.results / run.name):
        shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(first, run, symlinks=True)
    (run / ".fetched.json").unlink(missing_ok=True)
    for base, files in (("work/made", tree), ("more", top)):
        make_tree(run / base, {path: os.urandom(size) for path, size in files.items()})
    lab.settings = {"results": ",".join(patterns)}
    there = contents(run)
    with short_pauses():
        for cut in cuts:
            assert lab.relay is not None
            lab.relay.cut_after(cut, "down")
            assert lab.task("fetch_results", run=run.name).code in (0, 3, 4)
            lab.relay.mend()
            lab.task("clean", yes=True, route=lab.server)
            nothing_lost(there, run, lab.results / run.name)
            if not run.exists():
                return  # that cut came too late to cut anything
        assert lab.task("fetch_results", run=run.name, route=lab.server).code == 0
    if late:
        make_tree(run, {"work/late": "late"})
        there = contents(run)
    assert lab.task("clean", yes=True, route=lab.server).code == 0
    nothing_lost(there, run, lab.results / run.name)
    assert run.exists() or not late
    outside = [
        path
        for path in tree
        if patterns and not any(matches("made/" + path, pattern) for pattern in patterns)
    ]
    assert run.exists() or not outside
    if not patterns and not late:
        assert not run.exists()


def contents(run: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for base in ("work/made", "more", "work/late"):
        for path in [run / base, *(run / base).rglob("*")]:
            with contextlib.suppress(IsADirectoryError, FileNotFoundError):
                found[path.relative_to(run).as_posix()] = path.read_bytes()
    return found


def nothing_lost(there: dict[str, bytes], run: Path, copy: Path) -> None:
    for path, data in there.items():
        places: list[Any] = [place / path for place in (run, copy) if (place / path).is_file()]
        assert any(place.read_bytes() == data for place in places), path
