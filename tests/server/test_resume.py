"""`train --resume`: the next attempt of the same run, on its server or on another one."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from remote.loopback import LoopbackServer
from tests.support.faults import LOST, Done, Lab, short_pauses, wait_until
from tests.support.project import snapshot
from tests.support.proxy import Relay
from tests.support.sshd import MakeServer

SCRIPT = """
echo "attempt on $(cat count 2>/dev/null || echo 0) before"
n=$(($(cat "$REMOTE_RUN_DIR/checkpoints/count" 2>/dev/null || echo 0) + 1))
mkdir -p "$REMOTE_RUN_DIR/checkpoints"
echo $n > "$REMOTE_RUN_DIR/checkpoints/count"
head -c 12000000 /dev/urandom > "$REMOTE_RUN_DIR/checkpoints/state"
[ $n -lt 2 ] && exit 3
[ -e wait ] && while [ ! -e ../go ]; do sleep 0.1; done
echo "done at $n"
"""


@pytest.fixture
def lab(server: LoopbackServer, tmp_path: Path) -> Lab:
    return Lab(server, tmp_path, files={"train.sh": SCRIPT, "odd 'name\n": "1", "a/b": ""})


def run_of(lab: Lab) -> Path:
    (run,) = (path for path in (lab.root / "runs").iterdir() if not path.name.startswith("."))
    return run


def fail_once(lab: Lab) -> dict[str, Any]:
    """A run whose first attempt has failed."""
    lab.task("train")
    wait_until(lambda: lab.rows()[0]["state"] == "failed")
    return only_row(lab)


def only_row(lab: Lab) -> dict[str, Any]:
    (row,) = lab.rows()
    return row


def resumed(lab: Lab, **options: Any) -> Done:
    done = lab.task("train", **{"resume": "latest", "follow": True, **options})
    assert done.code == 0, done
    return done


def test_the_next_attempt_goes_on_and_the_history_stays(lab: Lab) -> None:
    before = fail_once(lab)
    assert "attempt 2 started" in resumed(lab).out
    row = only_row(lab)
    assert (row["run"], row["state"], row["exit_code"]) == (before["run"], "finished", 0)
    (attempt,) = row["attempts"]
    assert (attempt["state"], attempt["exit_code"], attempt["ended"]) == (
        "failed",
        3,
        before["ended"],
    )
    assert (run_of(lab) / "train.log").read_text().endswith("done at 2\n")
    assert "attempt 2" in lab.task("status").out


def test_what_was_written_before_is_not_shown_once_more(
    server: LoopbackServer, tmp_path: Path
) -> None:
    script = "[ -e seen ] && echo again && exit 0; touch seen; seq 300; exit 3\n"
    lab = Lab(server, tmp_path, files={"train.sh": script})
    fail_once(lab)
    shown = resumed(lab).out.splitlines()
    assert {"300", "again"} <= {*shown} and "200" not in shown, shown


def test_status_says_what_an_end_has_cost(server: LoopbackServer, tmp_path: Path) -> None:
    script = """
cd "$REMOTE_RUN_DIR"; mkdir -p checkpoints
echo x > checkpoints/last.ckpt; touch -d '100 seconds ago' checkpoints/last.ckpt
echo '{"epoch": 3, "max_epochs": 9, "time": '$(date +%s)'}' > progress.json
exit 3
"""
    lab = Lab(server, tmp_path, files={"train.sh": script})
    run = fail_once(lab)["run"]
    told = lab.task("status").err
    cost = r"1 min (39|40) s of training before its end are lost"
    hint = rf"to go on from its newest checkpoint, {cost}:\n  fab -H .* train --resume {run}\n"
    assert re.search(hint, told), told
    assert time.time() - only_row(lab)["checkpointed"] > 99


def test_one_that_runs_is_left_alone_and_followed(lab: Lab) -> None:
    (lab.project / "wait").touch()
    fail_once(lab)
    assert "attempt 2 started" in resumed(lab, follow=False).out
    again = resumed(lab, follow=False)
    assert "it is running" in again.out and "no second one is started" in again.out
    assert (run_of(lab) / "checkpoints" / "count").read_text() == "2\n"
    (run_of(lab) / "go").touch()
    wait_until(lambda: only_row(lab)["state"] == "finished")


def test_what_can_not_be_resumed_is_said_in_one_line(lab: Lab) -> None:
    assert lab.task("train", resume="other").code == 11
    run = fail_once(lab)["run"]
    wrong = lab.task("train", resume=run, name="x")
    assert wrong.code == 2 and "keeps its own" in wrong.err
    resumed(lab)
    done = lab.task("train", resume=run)
    assert done.code == 2 and f"{run} has finished" in done.err and len(done.error_lines) == 1


def test_a_run_that_the_server_has_lost_goes_on_elsewhere(
    lab: Lab, make_server: MakeServer
) -> None:
    before = fail_once(lab)
    assert lab.task("fetch_results").code == 0
    mirror = snapshot(lab.results / before["run"])
    there, lab.server = lab.server, make_server()
    done = resumed(lab)
    assert "sending what was fetched of it" in done.err and "attempt 2 started" in done.out
    releases = lab.root / "releases"
    assert [json.loads((run_of(lab) / "run.json").read_text())["release"]] == [
        path.name for path in releases.iterdir() if path.is_dir() and path.name[0] != "."
    ]
    row = only_row(lab)
    assert (row["run"], row["state"]) == (before["run"], "finished") and row["created"] > before[
        "created"
    ]
    assert [attempt["exit_code"] for attempt in row["attempts"]] == [3]
    assert (run_of(lab) / "train.log").read_text().endswith("done at 2\n")
    # Fetched again, the mirror has grown: the code is the same, and the log goes on where it was.
    assert lab.task("fetch_results").code == 0
    after = snapshot(lab.results / before["run"])
    assert {name: what for name, what in mirror.items() if name.startswith("source/")} == {
        name: what for name, what in after.items() if name.startswith("source/")
    }
    assert "done at 2" in (lab.results / before["run"] / "train.log").read_text()
    assert (
        json.loads((lab.results / before["run"] / "state.json").read_text())["state"] == "finished"
    )
    assert there.home != lab.server.home


def test_sending_it_goes_on_after_a_cut(lab: Lab, make_server: MakeServer) -> None:
    before = fail_once(lab)
    assert lab.task("fetch_results").code == 0
    lab.server = make_server()
    lab.task("deploy")
    with Relay(lab.server.host, lab.server.port) as relay, short_pauses():
        lab.relay = relay
        relay.cut_after(
            10_000_000, "up"
        )  # a reset throws away what lies unread in the system's buffers
        cut = lab.task("train", resume=before["run"], follow=True)
        assert cut.code == LOST and len(cut.error_lines) == 1, cut
        assert lab.rows() == [] and not list((lab.root / "runs").glob("2*"))
        parts = list((lab.root / "releases" / ".incoming").glob("*.part"))
        assert parts and parts[0].stat().st_size >= 1 << 20, (
            "what has arrived of a large file is not sent again"
        )
        relay.mend()
        again = resumed(lab).err
    amounts = [
        float(amount)
        for told in (cut.err, again)
        for amount in re.findall(r"sending what was fetched of it, ([\d.]+) MiB", told)
    ]
    assert len(amounts) == 2 and amounts[1] <= amounts[0] - 1, (cut.err, again)
    assert only_row(lab)["state"] == "finished"
