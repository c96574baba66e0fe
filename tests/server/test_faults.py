"""Connections that are cut or frozen at any byte: nothing half remains, nothing runs twice, no line
is lost.

The full sweeps, with hundreds of cut points, are in benchmarks/faults.py.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote.errors import AuthenticationFailed, ConnectionLost
from remote.link import link
from remote.link.session import Session
from remote.loopback import LoopbackServer
from remote.runs import launch, request
from remote.screen.display import Display
from remote.watching.follow import Follower
from tests.support.faults import LOST, UNREACHABLE, Lab, short_pauses, stalling, wait_until
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.proxy import Direction, Relay
from tests.support.several import Several
from tests.support.sshd import MakeServer, frozen
from tests.support.sweeps import PHASES, Follow, Sweep

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with short_pauses():
        yield


@pytest.fixture
def relay(server: LoopbackServer) -> Iterator[Relay]:
    with Relay(server.host, server.port) as relay:
        yield relay


@pytest.mark.parametrize("phase", PHASES)
def test_a_cut_anywhere_leaves_nothing_half_and_repeating_ends_as_if_uncut(
    server: LoopbackServer, relay: Relay, tmp_path: Path, phase: str
) -> None:
    sweep = Sweep(server, tmp_path, relay)
    codes = {sweep.cut(point).code for point in sweep.points(phase, 14)}
    assert LOST in codes and sweep.compared == 14


def test_a_cut_while_waiting_for_the_first_sign_of_life_starts_no_second_run(
    server: LoopbackServer, relay: Relay, tmp_path: Path
) -> None:
    """The launch was answered, the user was not told yet: the same command must mean the same
    run."""
    write_nvidia_smi(
        Path(server.path) / "nvidia-smi", [FakeGpu()]
    )  # whose only GPU the run has by then
    lab = Lab(server, tmp_path, relay, files={"train.sh": "sleep 3; echo up; sleep 20\n"})
    assert lab.task("deploy").code == 0
    ended: list[int] = []
    with stalling(relay, 1 << 40, "up"):
        thread = threading.Thread(target=lambda: ended.append(lab.task("train").code))
        thread.start()
        wait_until(lambda: any((lab.root / "runs").glob("*/train.log")))
        relay.refuse = True
        relay.cut()
        thread.join(60)
    assert ended in ([LOST], [UNREACHABLE])
    again = lab.task("train")
    assert again.code == 0 and "no second one is started" in again.out
    assert len(list((lab.root / "runs").glob("2*"))) == 1


def test_a_launch_whose_answer_is_lost_for_good_is_remembered(
    server: LoopbackServer, relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was made, its answer was lost, and no connection came back: the same command later
    must mean the same run."""
    lab = Lab(server, tmp_path, relay, files={"train.sh": "echo up; sleep 20\n"})
    assert lab.task("deploy").code == 0
    honest = request.start_run

    def lose_the_answer(*given: Any) -> Any:
        honest(*given)
        relay.refuse = True
        relay.cut()
        raise ConnectionLost("the connection was lost")

    monkeypatch.setattr(launch, "start_run", lose_the_answer)
    with short_pauses():
        assert lab.task("train").code == UNREACHABLE
    monkeypatch.setattr(launch, "start_run", honest)
    relay.mend()
    again = lab.task("train")
    assert again.code == 0 and "no second one is started" in again.out
    assert len(list((lab.root / "runs").glob("2*"))) == 1


def test_a_launch_after_which_nobody_may_log_in_is_remembered(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer was lost, and the key that would ask for it again is locked by then."""
    lab = Lab(server, tmp_path, files={"train.sh": "echo up; sleep 20\n"})
    honest, asked = request.start_run, list[int]()

    def lose_the_answer(*given: Any) -> Any:
        if asked:
            raise AuthenticationFailed("permission denied")
        asked.append(1)
        honest(*given)
        raise ConnectionLost("the connection was lost")

    monkeypatch.setattr(launch, "start_run", lose_the_answer)
    assert lab.task("train").code == 6
    monkeypatch.setattr(launch, "start_run", honest)
    again = lab.task("train")
    assert again.code == 0 and "no second one is started" in again.out
    assert len(list((lab.root / "runs").glob("2*"))) == 1


def test_a_deploy_takes_over_what_a_dead_connection_had_locked(
    server: LoopbackServer, relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network dies without a word: the agent over there holds the lock until it has heard
    nothing for a while."""
    monkeypatch.setattr(link, "IDLE_S", 2.0)
    lab = Lab(
        server, tmp_path, relay, files={"big": os.urandom(6 << 20)}, settings={"timeout_s": 1.0}
    )
    with stalling(relay, 2 << 20, "up"):
        assert lab.task("deploy").code == LOST
        monkeypatch.setattr(link, "PING_EVERY_S", 0.5)
        done = lab.task("deploy", route=server)
    assert done.code == 0 and "first release" in done.out and "is deploying" in done.err, done
    assert done.seconds < 30


class TestFrozen:
    """Every wait ends by remote.timeout_s, wherever the exchange stood still."""

    TIMEOUT_S = 1.0
    MOST_S = 15.0

    @pytest.mark.parametrize(
        ("after", "direction"),
        [(0, "up"), (1200, "down"), (2000, "up"), (3000, "up"), (60_000, "up"), (200_000, "up")],
    )
    def test_a_deploy(
        self, server: LoopbackServer, relay: Relay, tmp_path: Path, after: int, direction: Direction
    ) -> None:
        lab = Lab(server, tmp_path, relay, settings={"timeout_s": self.TIMEOUT_S})
        with stalling(relay, after, direction):
            done = lab.task("deploy")
        assert done.code in (LOST, UNREACHABLE) and len(done.error_lines) == 1, done
        assert done.seconds < self.MOST_S, done
        assert "for 1 s" in done.err

    def test_a_fetch(self, server: LoopbackServer, relay: Relay, tmp_path: Path) -> None:
        lab = finished_lab(server, relay, tmp_path, settings={"timeout_s": self.TIMEOUT_S})
        with stalling(relay, 100_000, "down"):
            done = lab.task("fetch_results")
        assert done.code == LOST and done.seconds < self.MOST_S and "no answer for 1 s" in done.err

    @pytest.mark.parametrize("task", ["status", "logs", "check_gpu"])
    def test_a_question_to_a_stopped_server(
        self, server: LoopbackServer, relay: Relay, tmp_path: Path, task: str
    ) -> None:
        lab = finished_lab(server, relay, tmp_path, settings={"timeout_s": self.TIMEOUT_S})
        with stalling(relay, 3500, "up"), frozen(server):
            done = lab.task(task)
        assert done.code in (LOST, UNREACHABLE) and done.seconds < self.MOST_S, done

    def test_following_a_server_that_stands_still_goes_on_by_itself(
        self, server: LoopbackServer, relay: Relay, tmp_path: Path
    ) -> None:
        follow = Follow(server, tmp_path, relay, lines=3000, timeout_s=self.TIMEOUT_S)
        thread = threading.Thread(target=follow.to_end)
        thread.start()
        wait_until(lambda: follow.seen > 100)
        with frozen(server):
            wait_until(lambda: follow.reconnects > 0)
        thread.join(60)
        assert follow.text() == follow.written()


def test_following_over_many_cuts_loses_no_line_and_shows_none_twice(
    server: LoopbackServer, relay: Relay, tmp_path: Path
) -> None:
    follow = Follow(server, tmp_path, relay, lines=6000)
    follow.to_end_over_cuts(12)
    assert relay.cuts >= 12 and follow.reconnects >= 10
    assert follow.text() == follow.written()
    assert follow.text().count("\n") == 6000 + 1


def test_the_tail_of_an_empty_log_is_followed_from_its_beginning(
    server: LoopbackServer, relay: Relay, tmp_path: Path
) -> None:
    """A cut before the first line: what was written meanwhile is longer than the tail, and none of
    it may be skipped."""
    lab = Lab(
        server,
        tmp_path,
        relay,
        files={"train.sh": "while [ ! -e ../go ]; do sleep 0.1; done; seq 5000; sleep 1\n"},
    )
    assert lab.task("deploy").code == 0
    thread = threading.Thread(target=lambda: lab.task("train", route=server), daemon=True)
    thread.start()
    wait_until(lambda: any((lab.root / "runs").glob("*/train.log")))
    texts: list[str] = []
    with Session(lab.target(), lab.parsed_project(), Display(notes=io.StringIO())) as session:
        follower = Follower(session, "latest", sink=texts.append)
        follower.tail = 200
        following = threading.Thread(target=follower.until_end, daemon=True)
        following.start()
        wait_until(lambda: follower.tail is None)
        relay.refuse = True
        relay.cut()
        (run,) = (lab.root / "runs").glob("2*")
        (run / "go").touch()
        wait_until(lambda: (run / "train.log").stat().st_size > 20_000)
        relay.refuse = False
        following.join(60)
    thread.join(60)
    assert "".join(texts) == "".join(f"{number}\n" for number in range(1, 5001))


def finished_lab(server: LoopbackServer, relay: Relay, directory: Path, **options: object) -> Lab:
    lab = Lab(server, directory, relay, **options)  # type: ignore[arg-type]
    assert lab.task("train", route=server).code == 0
    wait_until(lambda: lab.rows()[0]["state"] == "finished")
    return lab


def test_hosts_in_turn_one_that_is_dead_keeps_no_other_from_being_done(
    make_server: MakeServer, tmp_path: Path
) -> None:
    lab = Several(make_server(), tmp_path)
    lab.others = [Lab(make_server(), tmp_path / "second")]
    assert lab.on("b", "train").code == 0
    wait_until(lambda: "finished" in lab.on("b", "status").out)
    lab.server.close()
    for task, options in (
        ("deploy", {}),
        ("upload_data", {"path": str(lab.project / "data.bin")}),
        ("fetch_results", {}),
        ("clean", {"yes": True}),
    ):
        done = lab.on("ab", task, json=True, **options)
        rows = json.loads(done.out)
        assert done.code == UNREACHABLE and [row["host"] for row in rows] == ["b", "a"], done
        assert "error" not in rows[0] and rows[1]["error"] == "Unreachable", rows
        assert len(done.error_lines) == 1 and "error: a, " in done.err and rows[1]["reason"]
    wrong = lab.on("ab", "upload_data", path="/nowhere", json=True)
    assert wrong.code == 2 and len(wrong.error_lines) == 1, "it is wrong for all"


def test_a_script_learns_of_a_run_that_fails_at_once_or_is_not_waited_for(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(server, tmp_path, files={"train.sh": "echo up; exit 3\n"})
    failed = lab.task("train", json=True)
    told = json.loads(failed.out)
    assert failed.code == 10 and (told["state"], told["exit_code"]) == ("failed", 3), failed
    assert f"{told['run']} failed: exit code 3" in failed.err

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Follower, "until_started", interrupt)
    (lab.project / "train.sh").write_text("sleep 60\n")
    left = lab.task("train", json=True)
    told = json.loads(left.out)
    assert left.code == 130 and told["state"] in ("queued", "running") and told["created"], left
    assert "the training goes on" in left.err and lab.task("stop", run=told["run"]).code == 0
