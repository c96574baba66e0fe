"""One training on several hosts: two servers of this machine, which share nothing but its
network."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from remote.errors import ConnectionLost
from remote.link.session import Session
from tests.server.test_planned_shutdown import QUICK as SHUTDOWN
from tests.server.test_sweep import Two
from tests.support.faults import Done, Lab, wait_until
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.project import make_tree
from tests.support.sshd import MakeServer
from tests.support.wheels import Index, fake_wheels

QUICK = {"REMOTE_SILENCE_S": "4", "REMOTE_RESTART_S": "0.2", "REMOTE_JOIN_S": "8"}
TELL = 'echo "$NODE_RANK of $NNODES at $MASTER_ADDR:$MASTER_PORT by $GLOO_SOCKET_IFNAME"\n'
WAITS = (
    "trap 'echo saved > saved; exit 143' TERM; echo up; i=0; while [ $i -lt 600 ]; do sleep 0.2;"
    " i=$((i+1)); done\n"
)


class Group(Two):
    """As `fab -H a,b` would do it."""

    def train(self, script: str, **options: Any) -> Done:
        (self.project / "train.sh").write_text(script)
        return self.on("ab", "train", **{"nodes": 2, "follow": True, **options})

    def both(self, run: str | None = None) -> list[dict[str, Any]]:
        """A run's rows (the newest one's), the first host's first."""
        rows = json.loads(self.on("ab", "status", json=True).out)
        newest = [row for row in rows if row["run"] == (run or rows[0]["run"])]
        return sorted(newest, key=lambda row: row["rank"])

    def run_dirs(self) -> list[Path]:
        run = self.both()[0]["run"]
        return [lab.root / "runs" / run for lab in self.labs]

    def log(self, rank: int) -> str:
        return (self.run_dirs()[rank] / "train.log").read_text()

    def has_ended(self) -> bool:
        return all(row["state"] in ("finished", "failed", "stopped") for row in self.both())

    def ended(self) -> list[tuple[str, str, str]]:
        wait_until(self.has_ended)
        return [(row["state"], row["cause"], row["reason"]) for row in self.both()]


@pytest.fixture
def group(make_server: MakeServer, tmp_path: Path) -> Group:
    group = Group(make_server(env=QUICK), tmp_path)
    group.others = [Lab(make_server(env=QUICK), tmp_path / "second")]
    return group


def test_each_host_knows_its_place_and_all_logs_come_back(group: Group) -> None:
    done = group.train(TELL)
    assert (
        done.code == 0 and "every host reaches every other, with large packets too" in done.out
    ), done
    assert [row["state"] for row in group.both()] == ["finished"] * 2
    assert [row["nodes"] for row in group.both()] == [["a", "b"]] * 2
    assert group.log(0).startswith("0 of 2 at 127.0.0.1:") and "by lo" in group.log(0)
    assert group.log(1) == "1" + group.log(0)[1:]
    shown = group.on("ab", "logs")
    assert shown.out.splitlines() == [group.log(0).strip(), group.log(1).strip()], shown
    assert group.on("ab", "wait").code == 0
    assert group.on("ab", "fetch_results").code == 0
    (here,) = group.results.glob("2*")
    assert (here / "train.log").read_text() == group.log(0)
    assert (here / "node-1" / "train.log").read_text() == group.log(1)
    assert all(row["fetched"] for row in group.both())


def test_a_mirror_of_a_run_on_several_hosts_has_their_logs_at_the_end(group: Group) -> None:
    assert group.train(f"sleep 3; {TELL}", follow=False).code == 0
    done = group.on("ba", "fetch_results", watch=True)
    assert done.code == 0, done
    (here,) = group.results.glob("2*")
    assert (here / "train.log").read_text() == group.log(0) != ""
    assert (here / "node-1" / "train.log").read_text() == group.log(1)
    assert all(row["fetched"] for row in group.both())
    (group.project / "train.sh").write_text("echo alone\n")
    assert group.on("a", "train").code == group.on("b", "train").code == 0
    several = (
        group.on("ab", "fetch_results", watch=True),
        group.on("ab", "fetch_results", then_shutdown=True),
    )
    for refused, option in zip(several, ("--watch", "--then-shutdown"), strict=True):
        assert refused.code == 2 and len(refused.error_lines) == 1, refused
        assert f"fetch-results {option} takes one host, 2 were given" in refused.err


def test_each_host_plans_its_own_end(make_server: MakeServer, tmp_path: Path) -> None:
    group = Group(make_server(env=QUICK | SHUTDOWN), tmp_path)
    group.others = [Lab(make_server(env=QUICK | SHUTDOWN), tmp_path / "second")]
    group.settings = {"shutdown": "touch is-down"}
    done = group.train(TELL, shutdown_after="1s", keep_unfetched="1s")
    assert done.code == 0, done
    for name in "ab":
        assert f"{name} is shut down 1 s after its last run has ended" in done.err, done
    wait_until(lambda: all((server.home / "is-down").exists() for server in group.servers))
    assert group.on("ab", "keep").code == 0
    # As a host that shares this one's disk would have left it.
    plan = group.second.root / "shutdown.json"
    plan.write_text(json.dumps({"host": "node-a", "grace_s": 60, "unfetched_s": 60}))
    group.both()
    refused = group.train(WAITS, shutdown_after=True)
    assert refused.code == 7 and "node-a shares this disk" in refused.err, refused
    assert group.ended()[0][0] == "stopped"
    assert json.loads(plan.read_text())["host"] == "node-a"


def test_a_process_that_fails_ends_all_with_its_reason(group: Group) -> None:
    began = time.monotonic()
    fails = "[ $NODE_RANK = 0 ] || { sleep 3; echo 'Error: no memory for it'; exit 3; }\n"
    done = group.train(fails + WAITS)
    assert done.code == 10 and "b: exit code 3: Error: no memory for it" in done.err, done
    assert group.ended() == [("failed", "exit code", "b: exit code 3: Error: no memory for it")] * 2
    assert time.monotonic() - began < 30


def test_an_error_that_only_echoes_is_not_taken_for_the_reason(group: Group) -> None:
    """The first host's process notices at once, before its own supervisor knows of the other's."""
    echoes = "echo 'RuntimeError: gloo: Connection closed by peer'; exit 1\n"
    fails = "[ $NODE_RANK = 0 ] || { sleep 3; kill -9 $$; }; sleep 3.1\n"
    assert group.train(fails + echoes).code == 10
    assert {reason for _, _, reason in group.ended()} == {"b: killed from outside (SIGKILL)"}


@pytest.mark.parametrize("names", ["ab", "b"])
def test_a_stop_on_any_host_lets_all_save(group: Group, names: str) -> None:
    assert group.train(WAITS, follow=False).code == 0
    done = group.on(names, "stop")
    assert done.code == 0 and "stopped by" in done.out, done
    (state, cause, reason), other = group.ended()
    assert (state, cause) == ("stopped", "stopped") and reason.startswith("stopped by ")
    assert other == (state, cause, reason)
    assert all((run / "work" / "saved").exists() for run in group.run_dirs())


def test_a_stop_reaches_those_that_go_on_after_the_first(group: Group) -> None:
    assert (
        group.train("[ $NODE_RANK = 1 ] || { echo up; exit 0; }\n" + WAITS, follow=False).code == 0
    )
    wait_until(lambda: "up" in group.log(1))
    assert [row["state"] for row in group.both()] == ["running"] * 2
    assert group.on("ab", "stop").code == 0
    assert {state for state, _, _ in group.ended()} == {"stopped"}
    assert (group.run_dirs()[1] / "work" / "saved").exists()


def supervisor_of(run: Path) -> int:
    return int(json.loads((run / "state.json").read_text())["supervisor_pid"])


def test_a_supervisor_that_is_killed_or_silent_ends_the_others(group: Group) -> None:
    group.settings = {"launcher": "setsid"}  # tmux wakes what is stopped
    assert group.train(WAITS, follow=False).code == 0
    one, two = group.run_dirs()
    os.kill(supervisor_of(two), signal.SIGKILL)
    wait_until(lambda: group.both()[0]["state"] == "failed", 10)
    assert "b is gone" in group.both()[0]["reason"]
    assert group.train(WAITS, follow=False).code == 0
    one, two = group.run_dirs()
    os.kill(supervisor_of(one), signal.SIGSTOP)
    try:
        wait_until(lambda: group.both()[1]["state"] == "failed", 20)
        assert "nothing was heard of a for 4 s" in group.both()[1]["reason"]
    finally:
        os.kill(supervisor_of(one), signal.SIGCONT)
    assert group.ended()[0][1] == "host lost"


GOES_ON = """
[ "$REMOTE_ATTEMPT" = 1 ] || echo "$NODE_RANK goes on from $(cat $REMOTE_CHECKPOINT)"
[ "$REMOTE_ATTEMPT" = 1 ] && [ "$NODE_RANK" = 0 ] && echo step-7 > state.pt
[ "$REMOTE_ATTEMPT" = 1 ] && [ "$NODE_RANK" = 1 ] && { sleep 2; exit 3; }
[ "$REMOTE_ATTEMPT" = 1 ] && sleep 60
echo done
"""
"""On the second attempt, both have what the first one's first host has saved."""


def test_all_start_again_from_the_first_ones_checkpoint(group: Group) -> None:
    done = group.train(GOES_ON, max_restarts=1)
    assert done.code == 0, done
    assert [len(row["attempts"]) for row in group.both()] == [1, 1]
    assert "0 goes on from step-7" in group.log(0) and "1 goes on from step-7" in group.log(1)


def test_a_resumed_one_gives_hosts_that_lack_it_the_checkpoint(group: Group) -> None:
    about = '[project]\nname = "mine"\nversion = "1"\n'
    (group.project / "pyproject.toml").write_text(about)
    assert group.train(GOES_ON).code == 10
    group.ended()
    run = group.both()[0]["run"]
    shutil.rmtree(group.run_dirs()[1])
    (group.project / "pyproject.toml").write_text(about.replace("1", "2"))
    done = group.on("ab", "train", resume="latest", follow=True)
    assert done.code == 0 and f"run {run}: attempt 2" in done.out, (
        done.out,
        done.err,
        group.log(0),
    )
    assert [row["state"] for row in group.both(run)] == ["finished"] * 2
    assert "0 goes on from step-7" in group.log(0) and "done" in group.log(1)
    asked = [json.loads((place / "run.json").read_text()) for place in group.run_dirs()]
    assert [one["local"][0]["version"] for one in asked] == ["1", "1"], "its own code's"


def test_every_way_on_names_all_hosts_and_no_other_host_begins_it_anew(group: Group) -> None:
    """The first one has its checkpoints."""
    assert group.train(WAITS, follow=False, name="both").code == 0
    run = group.both()[0]["run"]
    way_on = re.compile(rf"fab -H a,b .*train --resume {run}")
    for names, task, options in (
        ("b", "stop", {"run": "both"}),
        ("b", "status", {}),
        ("a", "status", {}),
        ("ab", "status", {}),
    ):
        done = group.on(names, task, **options)
        assert done.code == 0 and len(way_on.findall(done.out + done.err)) == 1, (task, done)
    before = group.both(run)
    refused = group.on("b", "train", resume="both")
    assert refused.code == 2 and len(refused.error_lines) == 1, refused
    assert "the first of its 2 hosts" in refused.err and way_on.search(refused.err), refused
    assert group.both(run) == before
    assert group.on("ab", "train", resume="both", no_follow=True).code == 0
    assert [row["state"] for row in group.both(run)] == ["running"] * 2
    assert group.on("b", "stop", run="both").code == 0, "its name is known on all hosts"
    asked = [json.loads((place / "run.json").read_text()) for place in group.run_dirs()]
    differ = {key for key in asked[0] if asked[0][key] != asked[1].get(key)}
    assert differ <= {"nodes", "created", "environment_key", "python", "prefix"}, differ


def test_where_the_first_host_is_gone_another_goes_on_from_what_was_fetched(group: Group) -> None:
    group.settings = {"results": ""}
    assert group.train(GOES_ON).code == 10
    group.ended()
    assert group.on("ab", "fetch_results").code == 0
    run = group.both()[0]["run"]
    shutil.rmtree(group.run_dirs()[0])
    refused = group.on("ab", "train", resume=run)
    assert refused.code == 2 and f"clean --run {run}" in refused.err, refused
    assert group.on("b", "clean", run=[run], yes=True).code == 0
    assert group.on("b", "train", resume=run, follow=True).code == 0
    log = group.second.root / "runs" / run / "train.log"
    assert "goes on from step-7" in log.read_text()


def test_hosts_typed_in_another_way_are_told_to_be_named_all(group: Group) -> None:
    assert group.train(WAITS, follow=False).code == 0
    for place in group.run_dirs():
        asked = json.loads((place / "run.json").read_text())
        asked["nodes"]["hosts"] = ["me@one", "me@two"]
        (place / "run.json").write_text(json.dumps(asked))
    done = group.on("b", "stop")
    assert (
        "it was on me@one, me@two: name all" in done.out and "fab -H me@one,me@two" not in done.out
    ), done


def test_a_resumed_one_has_the_packages_of_before_on_every_host(
    group: Group, tmp_path: Path
) -> None:
    """Where one of them lacks these, all have today's."""
    has = "import sys; from importlib.metadata import version; print('has', version('demo-pkg'))"
    group.settings = {**group.settings, "requirements": "r.txt"}
    with Index(fake_wheels(tmp_path / "wheels")) as index:
        lines = f"[global]\nindex-url = {index.url}\nretries = 1\nno-cache-dir = true\n"
        for server in group.servers:
            make_tree(server.home, {".config/pip/pip.conf": lines})
        (group.project / "r.txt").write_text("demo-pkg==1.0\n")
        assert group.train(f'python -c "{has}"; exit 3').code == 10
        (group.project / "r.txt").write_text("demo-pkg==1.1\n")
        own = group.on("ab", "train", resume="latest", follow=True)
        assert "its own packages; --with-new-code would take today's" in own.err, own
        (environment,) = (group.labs[1].root / "env").glob("*/")
        shutil.rmtree(environment)
        today = group.on("ab", "train", resume="latest", follow=True)
        assert "it goes on with today's packages, not its own: a and b have other" in today.err, (
            today.err
        )
    for rank in (0, 1):
        assert group.log(rank).split()[1::2] == ["1.0", "1.0", "1.1"], group.log(rank)


def test_hosts_may_share_their_disk(make_server: MakeServer, tmp_path: Path) -> None:
    """As with homes on NFS: the further host has a folder in the run's own directory."""
    group = Group(make_server(env=QUICK), tmp_path)
    group.others = [Lab(make_server(env=QUICK, home=group.server.home), tmp_path / "second")]
    script = GOES_ON.replace("sleep 2", "sleep 2; touch $REMOTE_RUN_DIR/failed")
    assert group.train(script).code == 10
    (run,) = (group.root / "runs").glob("2*")
    assert (run / "failed").exists() and not (run / "node-1" / "work").exists()
    done = group.on("ab", "train", resume="latest", follow=True)
    assert done.code == 0, (done.out, done.err)
    assert "1 goes on from step-7" in (run / "node-1" / "train.log").read_text()
    assert group.on("ab", "fetch_results").code == 0
    (here,) = group.results.glob("2*")
    assert (here / "node-1" / "train.log").exists() and not (here / "node-1" / ".spare").exists()


def test_hosts_that_differ_are_refused_before_anything_starts(group: Group) -> None:
    a, b = (Path(server.path) / "nvidia-smi" for server in group.servers)
    write_nvidia_smi(a, [FakeGpu(), FakeGpu()])
    done = group.train(TELL)
    assert done.code == 9 and "all hosts need the same number of free GPUs: a 2, b 0" in done.err
    write_nvidia_smi(b, [FakeGpu()])
    done = group.train(TELL, gpus=2)
    assert done.code == 9 and "b, choose GPUs: --gpus 2: the server has 1" in done.err, done
    assert group.on("ab", "train", nodes=3).code == 2
    assert json.loads(group.on("ab", "status", json=True).out) == []
    assert group.train(TELL).code == 0
    assert [len(row["gpus"]) for row in group.both()] == [1, 1], "as many as the smaller one has"


def test_a_start_that_was_cut_off_is_ended_by_itself_or_taken_up(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Session.ask

    def cut(at: str, after: bool) -> Any:
        def ask(self: Session, kind: Any, *arguments: Any, **options: Any) -> Any:
            if at == kind.OP and not after:
                raise KeyboardInterrupt
            answer = original(self, kind, *arguments, **options)
            if at == kind.OP:
                raise KeyboardInterrupt
            return answer

        return ask

    with monkeypatch.context() as patch:
        patch.setattr(Session, "ask", cut("run_join", after=False))
        assert group.train(WAITS).code == 130
    lone = group.both()[0]["run"]
    with monkeypatch.context() as patch:
        patch.setattr(Session, "ask", cut("run_join", after=True))
        assert group.train(WAITS).code == 130
    wait_until(lambda: group.both(lone)[0]["state"] in ("stopped", "failed"))
    again = group.train(WAITS, follow=False)
    assert again.code == 0 and "no second one is started" in again.out, again
    rows = json.loads(group.on("ab", "status", json=True).out)
    assert len({row["run"] for row in rows}) == 2
    assert [row["state"] for row in group.both()] == ["running"] * 2
    assert group.on("ab", "stop").code == 0


def test_a_host_that_does_not_come_is_named(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Session.ask

    def leave(self: Session, kind: Any, *arguments: Any, **options: Any) -> Any:
        if kind.OP == "run_join":
            raise ConnectionLost("the connection was lost", host="b")
        return original(self, kind, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "ask", leave)
        patch.setattr("remote.runs.placement.TRIES", 1)
        assert group.train(TELL).code == 4
    wait_until(lambda: group.both()[0]["state"] == "failed", 20)
    assert group.both()[0]["reason"] == "b did not come within 8 s"
