"""Trainings as jobs of a real Slurm: submitted once, told truthfully, stopped and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from remote.agent.machine.processes import start_time
from remote.loopback import LoopbackServer
from tests.support.faults import Lab, run_task, wait_until
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.proxy import Direction, Relay
from tests.support.slurm import Cluster, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def lab_on(login: LoopbackServer, tmp_path: Path, script: str, **slurm: object) -> Lab:
    settings = {"launcher": "slurm", "results": "", "slurm": {"gres": "gpu:1", **slurm}}
    return Lab(login, tmp_path, files={"train.sh": script}, settings=settings)


def test_the_three_commands(login: LoopbackServer, cluster: Cluster, tmp_path: Path) -> None:
    lab = lab_on(login, tmp_path, "hostname > where; echo $CUDA_VISIBLE_DEVICES; echo done\n")
    done = lab.task("train", follow=True)
    assert done.code == 0, done.err
    assert "submitted to Slurm as job" in done.out and "finished" in done.out
    row = lab.rows()[0]
    assert (row["state"], row["server"] in cluster.nodes) == ("finished", True)
    assert lab.task("fetch_results").code == 0
    where = next((path / "work" / "where") for path in lab.results.glob("2*"))
    assert where.read_text().strip() in cluster.nodes
    assert len(cluster.jobs(row["run"])) == 1


def test_refused_before_a_run_exists(login: LoopbackServer, tmp_path: Path) -> None:
    lab = lab_on(login, tmp_path, "echo up\n", partition="nowhere")
    done = lab.task("train")
    assert done.code == 9 and len(done.error_lines) == 1
    assert "invalid partition specified: nowhere" in done.error_lines[0]
    assert lab.rows() == [] and not list((lab.root / "runs").glob("2*"))


SAVES = (
    "trap 'sleep 8; echo saved > saved; exit 143' TERM; echo up; i=0; while [ $i -lt 600 ]; do"
    " sleep 0.2; i=$((i+1)); done; echo all > all\n"
)
"""A save that outlasts KillWait, which is 5 s here."""


def run_of(lab: Lab) -> Path:
    return next((lab.root / "runs").glob("2*"))


def test_why_it_waits_and_a_stop_while_it_does(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    lab = lab_on(login, tmp_path, "echo up\n", extra="--hold")
    done = lab.task("train", follow=False)
    assert done.code == 0, done.err
    why = "waits in Slurm's queue as job"
    assert f"queued: {why}" in done.out and "it is held" in done.out
    assert [row["state"] for row in lab.rows()] == ["queued"]
    assert "(JobHeldUser)" in lab.rows()[0]["waiting"]
    stopped = lab.task("stop")
    assert stopped.code == 0 and "while it waited" in stopped.out, stopped.err
    assert [state for _, state in cluster.jobs(run_of(lab).name)] == ["CANCELLED"]
    assert lab.rows()[0]["state"] == "stopped"


def test_what_waits_is_let_go_and_finishes(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    lab = lab_on(login, tmp_path, "echo up\n", partition="closed")
    assert "the partition is down" in lab.task("train").out
    job = cluster.jobs(run_of(lab).name)[0][0]
    cluster.ask("scontrol update PartitionName=closed State=UP")
    done = lab.task("logs", follow=True)
    cluster.ask("scontrol update PartitionName=closed State=DOWN")
    assert done.code == 0 and lab.rows()[0]["state"] == "finished", (job, done.out, done.err)


def test_a_stop_leaves_a_training_its_time_to_save(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    lab = lab_on(login, tmp_path, SAVES)
    assert lab.task("train").code == 0
    stopped = lab.task("stop")
    assert stopped.code == 0 and "stopped by" in stopped.out, stopped.err
    assert (run_of(lab) / "work" / "saved").exists()
    assert lab.rows()[0]["state"] == "stopped"


def started(lab: Lab) -> dict[str, object]:
    """Once its supervisor tells."""
    wait_until(lambda: lab.rows()[0]["state"] == "running", 40)
    return lab.rows()[0]


def ended(lab: Lab, timeout_s: float = 60.0) -> dict[str, object]:
    wait_until(lambda: lab.rows()[0]["state"] not in ("queued", "running"), timeout_s)
    return lab.rows()[0]


COUNTS = (
    'trap "echo told >> told; exit 143" TERM; mkdir -p ../checkpoints; c=../checkpoints/n.ckpt;'
    " echo up; while [ $(cat $c 2>/dev/null || echo 0) -lt 400 ]; do sleep 0.2;"
    " echo $(( $(cat $c 2>/dev/null || echo 0) + 1 )) > $c.new; mv $c.new $c; done\n"
)
"""80 s of work, that goes on from what it has saved."""


def test_a_limit_shorter_than_the_training(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    lab = lab_on(login, tmp_path, COUNTS)
    assert lab.task("train", time="1m", max_restarts=3).code == 0
    row = ended(lab, 250)
    assert row["state"] == "finished", row
    attempts = row["attempts"]
    assert isinstance(attempts, list) and len(attempts) in (1, 2, 3)
    assert {attempt["cause"] for attempt in attempts} == {"time limit"}
    assert (run_of(lab) / "work" / "told").read_text() == "told\n" * len(attempts)
    assert len(cluster.jobs(run_of(lab).name)) == len(attempts) + 1


def test_ends_are_called_by_their_cause(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    lab = lab_on(login, tmp_path, "echo up; sleep 100\n")
    assert lab.task("train").code == 0
    started(lab)
    job = cluster.jobs(run_of(lab).name)[0][0]
    cluster.ask(f"scancel {job}")
    row = ended(lab)
    assert (row["state"], row["cause"]) == ("stopped", "cancelled"), row


def test_preempted(login: LoopbackServer, cluster: Cluster, tmp_path: Path) -> None:
    lab = lab_on(login, tmp_path, "echo up; sleep 100\n", extra="--exclusive")
    assert lab.task("train").code == 0
    started(lab)
    others = [
        cluster.ask("sbatch --parsable -p urgent --exclusive -o /dev/null --wrap true")
        for _ in cluster.nodes
    ]
    row = ended(lab)
    assert all(others) and (row["state"], row["cause"]) == ("failed", "preempted"), row


def test_a_node_dies_and_comes_back_after_the_next_attempt(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    """Its old supervisor, which a crashed node can't have but a cut-off one has, writes nothing."""
    lab = lab_on(login, tmp_path, "echo up; hostname > where; sleep 600\n")
    assert lab.task("train", max_restarts=1).code == 0
    row = started(lab)
    node = str(row["server"])
    state = json.loads((run_of(lab) / "state.json").read_text())
    for pid in (state["supervisor_pid"], state["pid"]):
        os.kill(pid, signal.SIGSTOP)
    cluster.end(node, signal.SIGKILL)
    cluster.ask(f"scontrol update NodeName={node} State=DOWN Reason=test")
    wait_until(lambda: lab.rows()[0]["attempts"], 60)
    attempt = lab.rows()[0]["attempts"][0]
    assert (attempt["cause"], attempt["host"]) == ("node failed", node)
    second = started(lab)
    assert second["server"] != node
    before = (run_of(lab) / "state.json").read_bytes()
    token = json.loads(before)["token"]
    for pid in (state["pid"], state["supervisor_pid"]):
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: start_time(state["pid"]) is None, 20)
    after = json.loads((run_of(lab) / "state.json").read_text())
    assert (after["token"], after["host"]) == (token, second["server"])
    cluster.start(node)
    cluster.ask(f"scontrol update NodeName={node} State=RESUME")
    assert lab.task("stop").code == 0


def replace_sbatch(login: LoopbackServer, script: str) -> None:
    """`real` in it is Slurm's own."""
    place = Path(login.path) / "sbatch"
    real = shutil.which("sbatch")
    place.unlink()
    place.write_text(f"#!/bin/sh\nreal={real}\n{script}\n")
    place.chmod(0o755)


LOST = 'echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
TELLS = "echo up; echo $SLURM_JOB_ID >> ../jobs\n"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(f'"$real" "$@" >/dev/null; {LOST}', id="the answer is lost"),
        pytest.param(f'rm "$0"; ln -s "$real" "$0"; {LOST}', id="it was never asked"),
        pytest.param('"$real" "$@"; kill -9 $PPID', id="the agent is killed with the answer"),
        pytest.param('kill -9 $PPID; sleep 1; "$real" "$@"', id="the agent is killed before it"),
    ],
)
def test_submitted_once_whatever_is_lost(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path, script: str
) -> None:
    lab = lab_on(login, tmp_path, TELLS)
    replace_sbatch(login, script)
    done = lab.task("train")
    assert done.code in (0, 4), done.err
    row = ended(lab)
    assert row["state"] == "finished", row
    assert len(cluster.jobs(run_of(lab).name)) == 1
    assert len((run_of(lab) / "jobs").read_text().split()) == 1
    assert len(list((lab.root / "runs").glob("2*"))) == 1


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_cut_at_many_places_of_the_launch(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path, direction: Direction
) -> None:
    with Relay(login.host, login.port) as relay:
        lab = lab_on(login, tmp_path, TELLS)
        lab.relay = relay
        assert lab.task("deploy").code == 0
        for place in range(10):
            relay.cut_after(2500 + 900 * place, direction)
            name = f"c{place}"
            codes = [lab.task("train", name=name).code]
            relay.mend()
            while codes[-1] == 4 and len(codes) < 5:
                codes.append(lab.task("train", name=name).code)
            assert codes[-1] == 0, codes
        wait_until(lambda: all(row["state"] == "finished" for row in lab.rows()), 60)
        assert sorted(row["name"] for row in lab.rows()) == [f"c{place}" for place in range(10)]
        for row in lab.rows():
            assert len(cluster.jobs(row["run"])) == 1


def test_a_controller_that_is_away(login: LoopbackServer, cluster: Cluster, tmp_path: Path) -> None:
    go = tmp_path / "go"
    lab = lab_on(login, tmp_path, f"echo up; while [ ! -e {go} ]; do sleep 0.2; done\n")
    assert lab.task("train", name="before").code == 0
    cluster.end("slurmctld")
    try:
        wait_until(lambda: "does not answer" in str(lab.rows()[0]["reason"]), 40)
        assert lab.rows()[0]["state"] == "running"
        done = lab.task("train", name="meanwhile")
        assert done.code == 0 and "Slurm's answer was lost" in done.err, done.err
        assert "Slurm does not answer" in done.out
        assert {row["state"] for row in lab.rows()} == {"queued", "running"}
    finally:
        cluster.start("slurmctld")
        go.touch()
    wait_until(lambda: all(row["state"] == "finished" for row in lab.rows()), 90)
    assert all(len(cluster.jobs(row["run"])) == 1 for row in lab.rows())


def test_going_on_and_what_an_exit_code_says(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    lab = lab_on(login, tmp_path, "echo up; [ -e ok ] || { touch ok; exit 3; }; echo again\n")
    assert lab.task("train").code == 10
    assert (lab.rows()[0]["state"], lab.rows()[0]["exit_code"]) == ("failed", 3)
    done = lab.task("train", resume="latest", follow=True)
    assert done.code == 0 and "attempt 2 submitted to Slurm as job" in done.out, done.err
    assert len(cluster.jobs(run_of(lab).name)) == 2


def test_one_process_is_told_of_one(login: LoopbackServer, tmp_path: Path) -> None:
    """Lightning takes SLURM_NTASKS for srun's and would wait for tasks that nobody starts."""
    show = "env | grep -E '^SLURM_(NTASKS|NPROCS|JOB_ID)' | cut -d= -f1 | sort | tr '\\n' ' '"
    lab = lab_on(login, tmp_path, f"{show} > seen\n", extra=["--ntasks-per-node=2", "-n2"])
    assert lab.task("train", follow=True).code == 0
    assert (run_of(lab) / "work" / "seen").read_text() == "SLURM_JOB_ID "


def test_gpus_are_those_of_a_node(login: LoopbackServer, cluster: Cluster, tmp_path: Path) -> None:
    """The login node has none; a node is asked once."""
    fake = tmp_path / "fake"
    write_nvidia_smi(fake, [FakeGpu(), FakeGpu()])
    shown = Path(login.path) / "nvidia-smi"
    shown.write_text(f'#!/bin/sh\n[ -n "$SLURM_JOB_ID" ] || exit 9\nexec {fake} "$@"\n')
    shown.chmod(0o755)
    lab = lab_on(login, tmp_path, "echo up\n")
    assert lab.task("deploy").code == 0
    done = lab.task("check_gpu")
    assert done.code == 0 and "NVIDIA" in done.out, done.out
    assert all(node in done.out for node in cluster.nodes) and "gpu:fake:2" in done.out
    names = cluster.ask("squeue -h -t all -o %j").split()
    assert lab.task("deploy").code == 0
    assert cluster.ask("squeue -h -t all -o %j").split() == names, "asked once"


LIMIT = """
taken=$(squeue -h --me -t PENDING,CONFIGURING,RUNNING,COMPLETING -o %i | wc -l)
[ "$taken" -lt 3 ] && exec "$real" "$@"
echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
exit 1
"""
"""Says what a QOS with MaxSubmitJobsPerUser=3 says, which needs an accounting."""


def test_a_sweep_under_a_submit_limit(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    lab = lab_on(login, tmp_path, 'echo "$2" >> "$HOME/ran"; sleep 1\n')
    replace_sbatch(login, LIMIT)
    config = lab.target()
    done = run_task(
        "sweep",
        lab.project,
        lab.all_settings,
        config,
        False,
        words=("--lr", "{lr}"),
        grid=["lr=1,2,3,4,5,6,7,8"],
        name="rates",
    )
    assert done.code == 0 and "8 of 8 points" in done.out, done.err
    ran = login.home / "ran"
    wait_until(lambda: ran.exists() and len(ran.read_text().split()) == 8, 90)
    assert sorted(ran.read_text().split()) == [str(number) for number in range(1, 9)]
    wait_until(lambda: all(row["state"] == "finished" for row in lab.rows()), 60)
    assert len(cluster.jobs()) >= 8 and len(lab.rows()) == 8
    assert all(len(cluster.jobs(row["run"])) == 1 for row in lab.rows())


def test_torch_is_tried_on_a_node(login: LoopbackServer, cluster: Cluster, tmp_path: Path) -> None:
    lab = lab_on(login, tmp_path, "echo up\n")
    lab.settings = {**lab.settings, "requirements": "needs.txt", "python": sys.executable}
    (lab.project / "needs.txt").write_text("torch\n")
    done = lab.task("deploy")
    assert done.code == 0 and "no GPU: training will run on the CPU" in done.out, done.err
    kept = [json.loads(file.read_text()) for file in lab.root.glob("env/*/proofs.json")]
    assert str(kept).count("boot_id") == 1
    assert any(f"'{node}'" in str(kept) for node in cluster.nodes), kept
    lab.settings = {**lab.settings, "slurm": {"partition": "closed"}}
    done = lab.task("deploy")
    assert done.code == 0 and "no node was free to try it on" in done.out, done.out


def test_slurm_is_proposed_where_it_is(login: LoopbackServer, tmp_path: Path) -> None:
    lab = lab_on(login, tmp_path, "echo up\n")
    lab.settings = {**lab.settings, "launcher": "auto"}
    done = lab.task("train", follow=True)
    assert done.code == 0 and "set remote.launcher: slurm" in done.err
    assert "without tmux (setsid)" in done.out
