"""One training on several nodes of a real Slurm: one job, a supervisor on each node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from tests.server.test_nodes import TELL, WAITS
from tests.server.test_slurm import ended, lab_on, run_of, started
from tests.support.faults import wait_until
from tests.support.slurm import Cluster, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
ROOT = Path(__file__).resolve().parents[2]


def test_each_node_knows_its_place(login: LoopbackServer, cluster: Cluster, tmp_path: Path) -> None:
    lab = lab_on(login, tmp_path, TELL + "hostname\n")
    done = lab.task("train", nodes=2, follow=True)
    assert done.code == 0, (done.out, done.err)
    row = lab.rows()[0]
    assert (row["state"], row["nodes"]) == ("finished", cluster.nodes)
    assert lab.task("fetch_results").code == 0
    (here,) = lab.results.glob("2*")
    logs = [(here / name).read_text() for name in ("train.log", "node-1/train.log")]
    assert [log.splitlines()[-1] for log in logs] == cluster.nodes
    assert logs[0].startswith("0 of 2 at ") and logs[1].startswith("1" + logs[0][1:20])
    assert not list(here.rglob(".attempts")) and len(cluster.jobs(row["run"])) == 1


def test_a_node_that_fails_ends_all_with_its_reason(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    lab = lab_on(login, tmp_path, "[ $NODE_RANK = 0 ] || { sleep 2; exit 3; }\n" + WAITS)
    assert lab.task("train", nodes=2).code == 0
    row = ended(lab)
    assert (row["state"], row["cause"]) == ("failed", "exit code"), row
    assert row["reason"] == f"{cluster.nodes[1]}: exit code 3"


def test_a_stop_lets_all_nodes_save(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    saves = WAITS.replace("saved; exit", "saved; touch saved-$NODE_RANK; exit")
    lab = lab_on(login, tmp_path, saves)
    assert lab.task("train", nodes=2).code == 0
    started(lab)
    assert lab.task("stop").code == 0
    assert ended(lab)["state"] == "stopped"
    assert sorted(path.name[-1] for path in (run_of(lab) / "work").glob("saved-*")) == ["0", "1"]


def test_all_start_again_and_a_supervisor_that_is_killed_is_told(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    ends = "1) exit $((3 * NODE_RANK));; 3) exit 0;;"
    script = f'echo "attempt $REMOTE_ATTEMPT"; case $REMOTE_ATTEMPT in {ends} esac\n'
    lab = lab_on(login, tmp_path, script + WAITS)
    assert lab.task("train", nodes=2, max_restarts=1).code == 0
    log = run_of(lab) / "node-1" / "train.log"
    wait_until(lambda: "attempt 2\nup" in log.read_text(), 40)
    member = json.loads((log.parent / "state.json").read_text())
    os.kill(member["supervisor_pid"], signal.SIGKILL)
    row = ended(lab)
    assert (row["state"], row["cause"]) == ("failed", "host lost"), row
    assert f"{cluster.nodes[1]} is gone" in str(row["reason"]) and row["attempts"]
    done = lab.task("train", resume="latest", follow=True)
    assert done.code == 0 and "attempt 3 submitted to Slurm" in done.out, done
    assert log.read_text().endswith("attempt 3\n")


def test_a_job_that_is_cancelled_lets_all_nodes_save(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    saves = WAITS.replace("saved; exit", "saved; touch saved-$NODE_RANK; exit")
    lab = lab_on(login, tmp_path, saves)
    assert lab.task("train", nodes=2).code == 0
    started(lab)
    cluster.ask(f"scancel {cluster.jobs(run_of(lab).name)[0][0]}")
    row = ended(lab)
    assert (row["state"], row["cause"]) == ("stopped", "cancelled"), row
    assert sorted(path.name[-1] for path in (run_of(lab) / "work").glob("saved-*")) == ["0", "1"]


def test_our_trainer_trains_on_two_nodes(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    """Lightning takes neither SLURM_NTASKS nor srun's ranks for its own."""
    lab = lab_on(login, tmp_path, "", gres="none")
    shutil.copytree(ROOT / "trainer", lab.project / "trainer")
    lab.settings = {**lab.settings, "command": "python -m trainer.train", "python": sys.executable}
    fields = ["accelerator=cpu", "widths=8", "train_images=400", "max_epochs=1", "num_workers=0"]
    done = lab.task("train", set=fields, data="synthetic", nodes=2, follow=True)
    assert done.code == 0 and "test accuracy" in done.out, (done.out, done.err)
    assert "on each of 2 hosts" in (run_of(lab) / "train.log").read_text()
