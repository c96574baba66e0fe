"""One training on several nodes of a real Slurm: one job, a supervisor on each node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from remote.loopback import LoopbackServer
from tests.server.test_nodes import TELL, WAITS
from tests.server.test_slurm import ended, lab_on, run_of, started
from tests.support.faults import Lab, wait_until
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.several import Several
from tests.support.slurm import Cluster, missing
from tests.support.sshd import MakeServer
from tests.support.training import same_bits, weights_of

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


TINY = ("accelerator=cpu", "train_images=400", "num_workers=0")
SLOW = """
import os
import time

from torch import nn


class Slow(nn.Module):
    def forward(self, images):
        if self.training:
            self.pause(2)
        return images

    def state_dict(self, *arguments, **options):
        self.pause(8)
        return super().state_dict(*arguments, **options)

    def pause(self, seconds):
        if os.path.exists({mark!r}):
            time.sleep(seconds)


def network(num_classes):
    return nn.Sequential(Slow(), nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))
"""


def trainer_on(login: LoopbackServer, tmp_path: Path) -> Lab:
    lab = lab_on(login, tmp_path, "", gres="none")
    shutil.copytree(ROOT / "trainer", lab.project / "trainer")
    lab.settings = {**lab.settings, "command": "python -m trainer.train", "python": sys.executable}
    return lab


def test_a_time_limit_lets_all_nodes_save_and_the_next_job_goes_on(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    """A save takes longer than the few seconds that are left to a training which has lost a node.
    Bit for bit as without a limit."""
    lab, mark = trainer_on(login, tmp_path), tmp_path / "slow"
    (lab.project / "slow.py").write_text(SLOW.format(mark=str(mark)))
    fields = [*TINY, "deterministic=true", "network=slow:network", "max_epochs=4", "batch_size=40"]
    asked: dict[str, Any] = {"set": fields, "data": "synthetic", "nodes": 2}
    mark.touch()
    # Slurm looks every 30 s, and may tell so much earlier than the minute that was asked for.
    assert lab.task("train", time="2m", max_restarts=3, **asked).code == 0
    run = run_of(lab)
    wait_until(lambda: lab.rows()[0]["attempts"], 150)
    mark.unlink()
    row = ended(lab, 180)
    assert row["state"] == "finished", (row, (run / "train.log").read_text())
    assert isinstance(row["attempts"], list)
    assert {attempt["cause"] for attempt in row["attempts"]} == {"time limit"}
    logs = [(run / name).read_text() for name in ("train.log", "node-1/train.log")]
    assert len(cluster.jobs(run.name)) == len(row["attempts"]) + 1
    assert logs[0].count("the state is saved") == logs[0].count("resuming from") >= 1, logs
    assert "supervisor: its time limit is over; it was told to save; restarting (1 of 3)" in logs[0]
    assert lab.task("train", name="whole", follow=True, **asked).code == 0
    whole = lab.root / "runs" / lab.rows()[0]["run"]
    one, other = (weights_of(path / "checkpoints" / "last.ckpt") for path in (run, whole))
    assert whole != run and same_bits(one, other)


def test_our_trainer_trains_on_two_nodes(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    """Lightning takes neither SLURM_NTASKS nor srun's ranks for its own."""
    lab = trainer_on(login, tmp_path)
    fields = [*TINY, "widths=8", "max_epochs=1"]
    done = lab.task("train", set=fields, data="synthetic", nodes=2, follow=True)
    assert done.code == 0 and "test accuracy" in done.out, (done.out, done.err)
    assert "on each of 2 hosts" in (run_of(lab) / "train.log").read_text()


def test_the_first_free_of_a_cluster_and_a_plain_host(
    login: LoopbackServer, cluster: Cluster, make_server: MakeServer, tmp_path: Path
) -> None:
    one = lab_on(login, tmp_path, "echo up\n")
    lab = Several(login, tmp_path, files=one.files, settings=one.settings)
    lab.others = [Lab(make_server(), tmp_path / "second")]
    asked = tmp_path / "asked"
    for name in ("sinfo", "squeue"):
        place = Path(login.path) / name
        real = place.resolve()
        place.unlink()
        place.write_text(f'#!/bin/sh\necho {name} >> {asked}\nexec {real} "$@"\n')
        place.chmod(0o755)
    b = Path(lab.second.server.path) / "nvidia-smi"
    write_nvidia_smi(b, [FakeGpu(memory_used="40960")])
    wait_until(lambda: cluster.ask("sinfo -h -N -p gpu -o %t").split() == ["idle"] * 2)
    done = lab.on("ab", "train", first_free=True, follow=True)
    seen = "a: 4 of 4 GPUs idle in Slurm, 2 on one node; b: 0 of 1 GPUs free (no Slurm)"
    assert done.code == 0 and f"a has 2 free ({seen})" in done.out, done
    assert "submitted to Slurm as job" in done.out
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nsleep 100\n")
    for _ in cluster.nodes:
        cluster.ask(f"sbatch --gres=gpu:2 -o /dev/null {script}")
    wait_until(lambda: cluster.ask("squeue -h -t RUNNING -o %i").count("\n") == 1)
    write_nvidia_smi(b, [FakeGpu()])
    asked.unlink()
    done = lab.on("ab", "train", first_free=True, follow=True)
    assert done.code == 0 and "b has 1 free (a: 0 of 4 GPUs idle" in done.out, done
    assert "tmux" in done.out and asked.read_text() == "sinfo\n", "one question"
    write_nvidia_smi(b, [FakeGpu(memory_used="40960")])
    assert lab.on("b", "train", first_free=True).code == 0, "it waits there"
    done = lab.on("ab", "train", first_free=True)
    assert done.code == 0 and "no GPU is free; the run waits in Slurm's queue on a" in done.out, (
        done
    )
    assert lab.on("b", "stop").code == 0
