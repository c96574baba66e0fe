"""Sweeps: a run for each point, on several hosts, none twice and none lost."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from remote.errors import ConnectionLost, Unreachable
from remote.link.session import Session
from remote.runs import launch, placement
from remote.runs.request import start_run
from tests.support.faults import Done, Lab, short_pauses, wait_until
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.several import Several
from tests.support.sshd import MakeServer

QUICK = {"REMOTE_QUEUE_POLL_S": "0.2", "REMOTE_QUEUE_APART_S": "0.1"}
STUB = """
lr=$2 seed=$4
echo "$lr $seed" >> "$HOME/ran"; sleep ${6:-0}
printf '{"test_accuracy": 0.%s%s, "epochs": 3}' "$lr" "$seed" > "$REMOTE_RUN_DIR/summary.json"
"""
GRID = ["lr=70,80", "seed=1,2,3"]
WORDS = ("--lr", "{lr}", "--seed", "{seed}")


class Two(Several):
    """One project and two servers, named a and b."""

    def sweep(self, names: str = "ab", words: Sequence[str] = WORDS, **options: Any) -> Done:
        return self.on(names, "sweep", words, grid=options.pop("grid", GRID), **options)

    def points(self, name: str = "rates") -> list[dict[str, Any]]:
        told = self.on("ab", "status", sweep=name, json=True)
        found: list[dict[str, Any]] = json.loads(told.out)["points"]
        return found

    def ran(self) -> Counter[str]:
        """How often each point was trained, on both hosts."""
        files = [lab.server.home / "ran" for lab in self.labs]
        return Counter(line for file in files if file.exists() for line in file.open())

    def finished(self, count: int = 6) -> bool:
        return [row["state"] for row in self.points()].count("finished") == count


@pytest.fixture
def lab(make_server: MakeServer, tmp_path: Path) -> Two:
    lab = Two(make_server(env=QUICK), tmp_path, files={"train.sh": STUB})
    lab.others = [Lab(make_server(env=QUICK), tmp_path / "second")]
    return lab


def test_points_are_spread_compared_and_fetched(lab: Two) -> None:
    write_nvidia_smi(Path(lab.server.path) / "nvidia-smi", [FakeGpu(), FakeGpu()])
    write_nvidia_smi(Path(lab.second.server.path) / "nvidia-smi", [FakeGpu()])
    done = lab.sweep(name="rates")
    assert done.code == 0 and "rates: 6 of 6 points" in done.out, done
    waited = lab.on("ab", "wait", sweep="rates")
    assert waited.code == 0 and waited.out.count("finished") == 6, waited
    assert lab.finished()
    assert set(lab.ran().values()) == {1} and len(lab.ran()) == 6
    hosts = Counter(row["host"] for row in lab.points())
    assert hosts == {"a": 4, "b": 2}, "by the GPUs that they have"
    assert all(run["gpus"] for run in lab.rows()), "through the server's queue"
    shown = lab.on("ab", "status", sweep="rates").out
    assert "6 points: 6 finished" in shown and "best: lr=80: 80.20% ± 0.10 (n=3)" in shown, shown
    fetched = lab.on("ab", "fetch_results", sweep="rates")
    assert fetched.code == 0, fetched
    rows = list(csv.DictReader((lab.results / "sweeps/rates/sweep.csv").open()))
    assert [row["test_accuracy"] for row in rows] == [f"0.{r}{s}" for r in (70, 80) for s in "123"]
    assert all((lab.results / row["run"] / "summary.json").exists() for row in rows)
    assert (lab.results / "sweeps/rates/sweep.png").exists() or "no picture" in fetched.err


def test_points_get_their_secrets_and_plan_the_server_s_end(
    lab: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "a-secret-of-mine")
    (lab.project / "train.sh").write_text('printf %s "$API_KEY" > "../key-$4"\n')
    lab.settings = {"shutdown": "true"}
    done = lab.sweep(name="rates", env=["API_KEY"], shutdown_after=True)
    assert done.code == 0 and "a is shut down 30 min after its last run" in done.err, done
    assert lab.on("ab", "wait", sweep="rates").code == 0
    for one in lab.labs:
        for run in (one.root / "runs").glob("2*"):
            assert next(run.glob("key-*")).read_text() == "a-secret-of-mine"
            asked = json.loads((run / "run.json").read_text())
            assert asked["env"] == ["API_KEY"] and "a-secret" not in json.dumps(asked)
    kept = lab.on("ab", "keep").out
    assert "a is not shut down; the plan was: a is shut down in 23 h" in kept and "b is not" in kept
    missing = lab.sweep(name="other", env=["MISSING"])
    assert missing.code == 2 and "--env MISSING: there is no such variable" in missing.err


def test_the_same_command_starts_nothing_twice_and_goes_on_where_it_was_cut(
    lab: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, asked = Session.ask, []

    def cut(self: Session, kind: Any, *arguments: Any, **options: Any) -> Any:
        answer = original(self, kind, *arguments, **options)
        if kind.OP == "run_start":
            asked.append(kind)
            if len(asked) == 3:
                raise KeyboardInterrupt  # it has been started, and nobody has heard so
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Session, "ask", cut)
        assert lab.sweep(name="rates").code == 130
    assert "6 of 6 points" in lab.sweep(name="rates").out
    again = lab.sweep(name="rates")
    assert (
        again.code == 0
        and "a: runs started: 0 " in again.out
        and "b: runs started: 0 " in again.out
    ), again
    wait_until(lab.finished)
    assert set(lab.ran().values()) == {1} and len(lab.ran()) == 6
    other = lab.sweep(words=(*WORDS, "--for", "1"), name="rates")
    assert other.code == 2 and "started with another command behind --" in other.err, other
    more = lab.sweep(name="rates", grid=["lr=70,80", "seed=1,2,3,4"])
    assert "8 of 8 points" in more.out
    wait_until(lambda: lab.finished(8))
    assert set(lab.ran().values()) == {1} and len(lab.ran()) == 8
    # What was fetched and cleaned is done, too.
    assert lab.on("ab", "fetch_results", sweep="rates").code == 0
    assert [lab.on(name, "clean", yes=True).code for name in "ab"] == [0, 0]
    assert not [run for one in lab.labs for run in (one.root / "runs").glob("2*")]
    assert "10 of 10 points" in lab.sweep(name="rates", grid=["lr=70,80", "seed=1,2,3,4,5"]).out
    wait_until(lambda: len(lab.ran()) == 10)
    assert set(lab.ran().values()) == {1}


def test_what_was_fetched_of_a_sweep_is_told_whoever_is_asked(lab: Two) -> None:
    assert lab.sweep(name="rates").code == 0
    wait_until(lab.finished)
    shown = lab.on("a", "status", sweep="rates").out
    assert "6 points: 3 finished, 3 not asked" in shown and "not found" not in shown, shown
    assert lab.on("ab", "fetch_results", sweep="rates").code == 0
    table = lab.results / "sweeps/rates/sweep.csv"
    whole = sorted(table.read_text().splitlines())
    assert len(whole) == 7 and all(",finished,3," in row for row in whole[:-1])

    def still(names: str) -> int:
        done = lab.on(names, "fetch_results", sweep="rates")
        assert sorted(table.read_text().splitlines()) == whole, table.read_text()
        return done.code

    assert still("a") == 0, "the other one was not asked"
    assert "6 points: 6 finished" in lab.on("a", "status", sweep="rates").out
    assert [lab.on(name, "clean", yes=True).code for name in "ab"] == [0, 0]
    assert not [run for one in lab.labs for run in (one.root / "runs").glob("2*")]
    assert still("ab") == 0, "nobody but this computer has them"
    assert len(lab.points()) == 6 and lab.finished()
    lab.server.close()
    assert still("ab") == 3, "one is dead"
    for run in lab.results.glob("2*"):
        shutil.rmtree(run)
    assert still("ab") == 3, "nor are they here: a table never gets poorer"


def test_a_sweep_is_waited_for_through_broken_connections(
    lab: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lab.sweep(name="rates").code == 0
    original, refused = Session.ask, list[Any]()

    def refuse(self: Session, kind: Any, *arguments: Any, **options: Any) -> Any:
        if kind.OP == "follow" and self.host == "b" and len(refused) < 2:
            refused.append(kind)
            raise Unreachable("port 22 refuses connections", host=self.host)
        return original(self, kind, *arguments, **options)

    monkeypatch.setattr(Session, "ask", refuse)
    with short_pauses():
        waited = lab.on("ab", "wait", sweep="rates")
    assert waited.code == 0 and waited.out.count("finished") == 6 and len(refused) == 2, waited


def test_points_that_were_started_from_elsewhere_are_not_started_again(lab: Two) -> None:
    assert lab.sweep(name="rates").code == 0
    wait_until(lab.finished)
    lab.results.rename(lab.directory / "first-laptop")
    other = lab.sweep(words=(*WORDS, "--for", "1"), name="rates")
    assert other.code == 2 and "started with another command behind --" in other.err, other
    again = lab.sweep(name="rates", grid=["lr=70,80", "seed=1,2,3,4"])
    assert again.code == 0 and "6 of 8 points were started before" in again.out, again
    wait_until(lambda: lab.finished(8))
    assert lab.on("ab", "fetch_results", sweep="rates").code == 0
    assert [lab.on(name, "clean", yes=True).code for name in "ab"] == [0, 0]
    shutil.rmtree(lab.results / "sweeps")
    last = lab.sweep(name="rates", grid=["lr=70,80", "seed=1,2,3,4"])
    assert last.code == 0 and "8 of 8 points were started before" in last.out, last
    assert set(lab.ran().values()) == {1} and len(lab.ran()) == 8


def test_a_host_that_is_down_leaves_its_part_to_the_others(lab: Two) -> None:
    lab.second.server.close()
    done = lab.sweep(name="rates")
    assert done.code == 0 and "b: " in done.err and "its part goes to the others" in done.err, done
    wait_until(lambda: "6 points: 6 finished" in lab.on("a", "status", sweep="rates").out)
    assert len(lab.ran()) == 6


def test_on_a_processor_one_point_after_the_other_and_all_can_be_stopped(lab: Two) -> None:
    words = (*WORDS, "--for", "30")
    assert lab.sweep("b", words, name="rates").code == 0
    wait_until(lambda: any(row["state"] == "running" for row in lab.points()))
    states = Counter(row["state"] for row in lab.points())
    assert states == {"running": 1, "queued": 5}
    lab.server.close()
    stopped = lab.on("ab", "stop", sweep="rates")
    assert stopped.code == 3 and "b: stopped runs: 6" in stopped.out and "error: a" in stopped.err
    told = lab.on("ab", "wait", sweep="rates", json=True)
    assert told.code == 3, "the other one's runs are waited for all the same"
    told = lab.on("b", "wait", sweep="rates", json=True)
    assert told.code == 10 and {row["state"] for row in json.loads(told.out)} == {"stopped"}
    assert len(lab.ran()) == 1


def test_the_first_free_server_is_taken_and_a_cut_start_stays_where_it_was(lab: Two) -> None:
    a, b = (Path(server.path) / "nvidia-smi" for server in lab.servers)
    write_nvidia_smi(a, [FakeGpu(memory_used="40960"), FakeGpu()])
    write_nvidia_smi(b, [FakeGpu(), FakeGpu()])
    words = ["--lr", "70", "--seed", "1"]
    two = lab.on("ab", "train", words, first_free=True, gpus=2, name="two")
    assert two.code == 0 and "b has 2 free (a: 1 of 2 GPUs free; b: 2 of 2 GPUs" in two.out, two
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "TRIES", 1)
        patch.setattr(launch, "start_run", lose_the_answer)
        cut = lab.on("ab", "train", words, first_free=True, name="one")
    assert cut.code == 4, cut
    write_nvidia_smi(a, [FakeGpu(memory_used="40960"), FakeGpu(memory_used="40960")])
    write_nvidia_smi(b, [FakeGpu(), FakeGpu()])
    again = lab.on("ab", "train", words, first_free=True, name="one")
    assert again.code == 0 and "an earlier call was cut off there" in again.out, again
    told = json.loads(lab.on("ab", "status", json=True).out)
    assert [row["name"] for row in told].count("one") == 1


def lose_the_answer(*arguments: Any, **options: Any) -> Any:
    start_run(*arguments, **options)
    raise ConnectionLost("the connection was lost")


@pytest.mark.parametrize(
    ("grid", "words", "problem"),
    [
        ([], WORDS, "a sweep needs a grid"),
        (["lr"], WORDS, "--grid needs key=value,value"),
        (["lr=1", "lr=2"], WORDS, "--grid lr is given twice"),
        (["lr=1"], WORDS, "name different things: seed"),
        (["a=" + ",".join(map(str, range(1001)))], ("{a}",), "1001 points, 1000 at most"),
    ],
)
def test_what_is_no_grid_is_refused_before_anything_is_asked(
    lab: Two, grid: list[str], words: Sequence[str], problem: str
) -> None:
    done = lab.sweep(words=words, grid=grid, name="rates")
    assert done.code == 2 and problem in done.err, done
    assert not (lab.results / "sweeps").exists()
