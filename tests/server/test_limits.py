"""--time and --stop-if-idle: a run is told to save and stopped, and goes on when it is resumed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults import Lab, wait_until
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.sshd import USUAL, MakeServer, sparse_path

SAVES = (
    "trap 'echo saved; exit 0' TERM\necho up $REMOTE_ATTEMPT\n"
    "[ $REMOTE_ATTEMPT = 1 ] || exit 0\nwhile :; do sleep 0.1; done\n"
)
GPU = "GPU-00000000-0000-0000-0000-000000000001"


def lab_with_gpu(make_server: MakeServer, directory: Path, utilization: str) -> Lab:
    path = sparse_path(directory / "bin", USUAL)
    use(directory / "bin", utilization)
    server = make_server(path=path, env={"REMOTE_SAMPLE_S": "0.2"})
    return Lab(server, directory, files={"train.sh": SAVES})


def use(path: Path, utilization: str) -> None:
    write_nvidia_smi(path / "nvidia-smi", [FakeGpu(uuid=GPU, utilization=utilization)])


def ended(lab: Lab) -> tuple[str, str]:
    wait_until(lambda: lab.rows()[0]["ended"])
    (run,) = (lab.root / "runs").glob("2*")
    row = lab.rows()[0]
    assert (run / "train.log").read_text() == "up 1\nsaved\n"
    return row["state"], row["cause"]


def test_a_time_limit(make_server: MakeServer, tmp_path: Path) -> None:
    lab = lab_with_gpu(make_server, tmp_path, "0")
    assert lab.task("train", time="3s").code == 0
    assert ended(lab) == ("stopped", "time limit")
    assert "its time limit of 3 s is over; it was told to save" in lab.rows()[0]["reason"]
    assert lab.task("train", resume="latest", time="1h", follow=True).code == 0
    assert lab.rows()[0]["state"] == "finished"


def test_idle_gpus(make_server: MakeServer, tmp_path: Path) -> None:
    """Busy ones and ones whose use can't be read are left alone for as long as they are."""
    lab = lab_with_gpu(make_server, tmp_path, "[N/A]")
    assert lab.task("train", stop_if_idle="2s").code == 0
    begun = lab.rows()[0]["started"]
    wait_until(lambda: time.time() - begun > 4)
    use(tmp_path / "bin", "80")
    assert lab.rows()[0]["state"] == "running"
    use(tmp_path / "bin", "4")
    assert ended(lab) == ("stopped", "idle")


@pytest.mark.parametrize(("option", "text"), [("time", "3"), ("stop_if_idle", "soon")])
def test_what_is_no_time_is_refused(
    make_server: MakeServer, tmp_path: Path, option: str, text: str
) -> None:
    options: dict[str, Any] = {option: text}
    done = Lab(make_server(), tmp_path).task("train", **options)
    assert done.code == 2 and f"--{option.replace('_', '-')}: a time is given as" in done.err
