"""Ends that come from the machine, provoked on it: a reboot, a process number given again, another
host on the same home.

Namespaces give a login another boot id or host name, as root on Linux; elsewhere
tests/server/test_run_ends.py has to do. And the real trainer, on a disk that fills and with a
learning rate that no network bears.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.test_run_ends import RUNNING, Ends, small_disk
from tests.support.agent import agent, follow, put, start
from tests.support.faults import Lab, wait_until
from tests.support.project import make_project
from tests.support.sshd import MakeServer, end_tmux, sparse_path
from trainer.checkpoints import load_checkpoint

__all__ = ["small_disk"]  # a fixture
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def shell_within(folder: Path, unshare: str, before: str) -> str:
    """A login shell whose session runs in a namespace of its own, after the command `before`."""
    if (
        sys.platform != "linux"
        or subprocess.run(["unshare", unshare, "sh", "-c", before], capture_output=True).returncode
    ):
        pytest.skip(f"unshare {unshare} is not allowed here")
    # A test's server has a PATH of its own.
    tool, before = shutil.which("unshare"), f"PATH={os.environ['PATH']} {before}"
    shell = folder / f"shell-{uuid.uuid4().hex[:8]}"
    shell.write_text(
        f'#!/bin/sh\nexec {tool} {unshare} sh -c \'{before} && exec /bin/sh "$@"\' sh "$@"\n'
    )
    shell.chmod(0o755)
    return str(shell)


def test_after_a_reboot(make_server: MakeServer, tmp_path: Path) -> None:
    """All processes are gone, at once, and the machine comes up with another boot id."""
    (tmp_path / "boot_id").write_text(f"{uuid.uuid4()}\n")
    shell = shell_within(
        tmp_path, "--mount", f"mount --bind {tmp_path}/boot_id /proc/sys/kernel/random/boot_id"
    )
    ends = Ends(make_server(), tmp_path)
    ends.start(*RUNNING)
    pid = ends.state()["pid"]
    end_tmux(ends.server.home)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    ends.lab.server = make_server(home=ends.server.home, shell=shell)
    row = ends.told()
    assert (row["state"], row["cause"], row["reason"]) == (
        "failed",
        "rebooted",
        "the server was rebooted",
    )


def test_on_another_host_of_a_shared_home(make_server: MakeServer, tmp_path: Path) -> None:
    ends = Ends(make_server(shell=shell_within(tmp_path, "--uts", "hostname node7")), tmp_path)
    ends.start(*RUNNING)
    assert ends.told()["state"] == "running"
    there, ends.lab.server = ends.lab.server, make_server(home=ends.server.home)
    row = ends.told()
    assert (row["state"], row["cause"], row["elsewhere"], row["server"]) == (
        "running",
        None,
        True,
        "node7",
    )
    assert "node7" in row["reason"]
    early = ends.lab.task("stop", gone=True)
    assert early.code == 10 and "node7 lives: r1 has written something" in early.err, early
    assert ends.lab.task("train", resume="r1").code == 11, "it goes on there"
    stopped = ends.lab.task("stop")  # its supervisor there hears of it by the disk
    assert stopped.code == 0 and "train --resume r1" in stopped.out, stopped
    ends.lab.server = there
    assert ends.told()["cause"] == "stopped"


@pytest.fixture
def stranger() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_a_process_number_that_the_kernel_gives_again(
    make_server: MakeServer, tmp_path: Path, stranger: list[subprocess.Popen[bytes]]
) -> None:
    if not os.access(LAST_PID, os.W_OK):
        pytest.skip("the next process number can't be chosen here")
    ends = Ends(make_server(), tmp_path)
    ends.start(*RUNNING)
    wanted = ends.state()["pid"]
    end_tmux(ends.server.home)
    wait_until(lambda: not Path(f"/proc/{wanted}").exists())
    for _ in range(200):
        LAST_PID.write_text(str(wanted - 1))
        stranger.append(subprocess.Popen(["sleep", "60"]))
        if stranger[-1].pid == wanted:
            break
    assert stranger[-1].pid == wanted
    row = ends.told()
    assert (row["state"], row["cause"]) == (
        "failed",
        "pid reused",
    ) and "another process has its number" in row["reason"]


# the real trainer

TRAIN = [
    "-m",
    "trainer.train",
    "--recipe",
    "demo",
    "--data",
    "synthetic",
    "--widths",
    "8,8,8",
    "--train_images",
    "2000",
]


def train(lab: Lab, tmp_path: Path, *arguments: str) -> threading.Thread:
    """Start it, and return once it trains; the thread ends with it."""
    with agent(lab.server) as link:
        release = put(link, make_project(tmp_path / "code", parts=("trainer",), git=False))
        where = ["--run_dir", str(lab.root / "runs" / "r1")]
        start(
            link,
            "r1",
            release,
            sys.executable,
            *TRAIN,
            *arguments,
            *where,
            finish="summary",
            python=sys.executable,
        )
    thread = threading.Thread(target=wait_for_end, args=(lab,))
    thread.start()
    return thread


def wait_for_end(lab: Lab) -> None:
    with agent(lab.server) as link:
        follow(link, "r1")


def only_row(lab: Lab) -> dict[str, Any]:
    (row,) = lab.rows()
    return row


def test_a_learning_rate_that_no_network_bears_is_told_as_divergence(
    make_server: MakeServer, tmp_path: Path
) -> None:
    lab = Lab(make_server(), tmp_path, files={"a": "1"})
    train(
        lab,
        tmp_path,
        "--learning_rate",
        "1e30",
        "--head_learning_rate",
        "1e30",
        "--max_restores",
        "1",
    ).join()
    row = only_row(lab)
    assert (row["state"], row["cause"], row["exit_code"]) == ("failed", "diverged", 5)
    assert "1 attempts with a lower learning rate did not help" in row["reason"]


def test_a_disk_that_fills_under_the_real_trainer(
    make_server: MakeServer, tmp_path: Path, small_disk: Path
) -> None:
    """Its own writes fail, those of its log and those of its checkpoints, before anybody can ask it
    to stop."""
    server = make_server(home=small_disk / "home", path=sparse_path(tmp_path / "bin"))
    lab = Lab(server, tmp_path, files={"a": "1"})
    ended = train(lab, tmp_path, "--max_epochs", "100000", "--set", "validation_max=100")
    last = lab.root / "runs" / "r1" / "checkpoints" / "last.ckpt"
    wait_until(last.exists, 60)
    with open(small_disk / "filler", "wb", buffering=0) as filler:
        try:
            while ended.is_alive():
                filler.write(b"f" * 400_000)
        except OSError:
            pass
    ended.join()
    row = only_row(lab)
    assert (row["state"], row["cause"]) == ("failed", "disk full"), row
    assert load_checkpoint(last)["training"]["epoch"] >= 1
    assert "Traceback" not in (lab.root / "runs" / "r1" / "train.log").read_text()
