"""What Slurm refuses, what it lets wait and why, and a training that it interrupts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from remote.loopback import LoopbackServer
from tests.server.test_slurm import ended, lab_on, run_of, started
from tests.support.faults import Lab, wait_until
from tests.support.project import make_project
from tests.support.slurm import Cluster, missing

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("slurm", "said"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"gres": "gpu:h100:9"}, "Requested node configuration is not available"),
        ({"gres": "nothing:1"}, "Invalid generic resource"),
        ({"constraint": "h200"}, "Invalid feature specification"),
        ({"mem": "900G"}, "Memory specification can not be satisfied"),
        ({"extra": "--nodelist=n99"}, "Invalid node name specified"),
        ({"extra": "--no-such-option"}, "unrecognized option"),
    ],
)
def test_refused_in_one_line_before_a_run_exists(
    login: LoopbackServer, tmp_path: Path, slurm: dict[str, str], said: str
) -> None:
    lab = lab_on(login, tmp_path, "echo up\n", **slurm)
    done = lab.task("train")
    assert done.code == 9 and len(done.error_lines) == 1, done
    assert said in done.error_lines[0]
    assert lab.rows() == [] and not list((lab.root / "runs").glob("2*"))


def waiting(lab: Lab, words: str) -> str:
    seen: list[str] = []

    def told() -> bool:
        seen.append(str(lab.rows()[0]["waiting"]))
        return words in seen[-1]

    try:
        wait_until(told, 60)
    except AssertionError:
        raise AssertionError(f"{words!r} was waited for; {seen[-1]!r} was told") from None
    return seen[-1]


def test_accepted_and_can_never_start(login: LoopbackServer, tmp_path: Path) -> None:
    lab = lab_on(login, tmp_path, "echo up\n", partition="short", time="30m")
    assert lab.task("train").code == 0
    why = waiting(lab, "PartitionTimeLimit")
    assert "its time limit is above the partition's: it can never start" in why
    assert lab.task("stop").code == 0 and lab.rows()[0]["state"] == "stopped"


def test_nodes_that_others_have_and_nodes_that_are_drained(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    holds = tmp_path / "holds.sh"
    holds.write_text("#!/bin/sh\nsleep 300\n")
    others = [
        cluster.ask(f"sbatch --parsable --exclusive -t 5 -o /dev/null {holds}")
        for _ in cluster.nodes
    ]
    wait_until(lambda: all("RUNNING" in cluster.ask(f"squeue -h -j {o} -o %T") for o in others), 20)
    lab = lab_on(login, tmp_path, "echo up\n")
    assert lab.task("train", time="5m").code == 0
    why = waiting(lab, "expected to start")
    assert ("(Resources)" in why or "(Priority)" in why) and "expected to start in about" in why
    for node in cluster.nodes:
        cluster.ask(f"scontrol update NodeName={node} State=DRAIN Reason=repair")
    cluster.ask("scancel " + " ".join(others))
    waiting(lab, "DOWN, DRAINED or reserved")  # Slurm's own words
    for node in cluster.nodes:
        cluster.ask(f"scontrol update NodeName={node} State=RESUME")
    assert ended(lab)["state"] == "finished"


def test_a_log_that_can_t_be_written(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    """As on a node that lacks the file system: the job ends before our supervisor begins."""
    lab = lab_on(login, tmp_path, "echo up\n", extra="--hold")
    assert lab.task("train").code == 0
    job = cluster.jobs(run_of(lab).name)[0][0]
    cluster.ask(f"scontrol update JobId={job} StdOut=/proc/nowhere/slurm.log")
    cluster.ask(f"scontrol release {job}")
    row = ended(lab)
    assert row["state"] == "failed" and "can't be written" in str(row["reason"]), row


def test_a_training_that_is_preempted_ends_as_if_it_had_not_been(
    login: LoopbackServer, cluster: Cluster, tmp_path: Path
) -> None:
    settings = {
        "python": sys.executable,
        "requirements": "trainer/requirements.txt",
        "command": "python -m trainer.train",
    }
    lab = lab_on(login, tmp_path, "")
    shutil.rmtree(lab.project)
    make_project(lab.project)
    own = {key: value for key, value in lab.settings.items() if key not in ("slurm", "results")}
    lab.settings = {**own, **settings, "slurm": {"extra": "--exclusive"}}
    fields = ["widths=8,8,8", "train_images=300", "max_epochs=5", "accelerator=cpu"]
    asked: dict[str, Any] = {"recipe": "demo", "set": fields, "no_follow": True}
    assert lab.task("train", name="whole", **asked).code == 0
    assert ended(lab, 200)["state"] == "finished"
    done = lab.task("train", name="cut", max_restarts=2, **asked)
    assert done.code == 0, done
    started(lab)
    whole, cut = sorted((lab.root / "runs").glob("2*"), key=lambda path: "cut" in path.name)

    def epoch() -> int:
        try:
            return int(json.loads((cut / "progress.json").read_text())["epoch"])
        except (OSError, ValueError, KeyError):
            return 0

    wait_until(lambda: epoch() >= 2, 150)
    for _ in cluster.nodes:
        assert cluster.ask("sbatch --parsable -p urgent --exclusive -o /dev/null --wrap true")
    row = ended(lab, 200)
    attempts = row["attempts"]
    assert row["state"] == "finished" and isinstance(attempts, list), row
    assert [attempt["cause"] for attempt in attempts] == ["preempted"]
    weights = [torch.load(run / "weights.pt", weights_only=True) for run in (whole, cut)]
    assert str(weights[0]) == str(weights[1])
    states = [saved.get("state_dict", saved) for saved in weights]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
