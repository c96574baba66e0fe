"""How a run ended is told truthfully and distinctly: every end is provoked, and read by `status`
and `status --json`."""

from __future__ import annotations

import json
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote.agent.machine import processes
from remote.loopback import LoopbackServer
from tests.support.agent import ROOT, agent, follow, put, start
from tests.support.faults import UNREACHABLE, Lab, mount_small_disk, wait_until
from tests.support.project import make_tree
from tests.support.sshd import MakeServer, sparse_path

MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
MIB = 1 << 20


class Ends:
    """One run on a server, ended in some way, and what a user is told of it."""

    def __init__(self, server: LoopbackServer, directory: Path) -> None:
        self.lab = Lab(server, directory, files={"a": "1"})
        self.server = server
        with agent(server) as link:
            self.release = put(link, self.lab.project)

    @property
    def run(self) -> Path:
        return self.lab.root / "runs" / "r1"

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / "state.json").read_text())
        return found

    def change(self, **changes: object) -> None:
        (self.run / "state.json").write_text(json.dumps(self.state() | changes))

    def start(self, *argv: str, **asked: Any) -> None:
        """Returns once it shows a sign of life or has ended."""
        with agent(self.server) as link:
            start(link, "r1", self.release, *argv, **asked)
            follow(link, "r1", until="started")

    def end(self, *argv: str, **asked: Any) -> dict[str, Any]:
        self.start(*argv, **asked)
        return self.wait()

    def wait(self) -> dict[str, Any]:
        with agent(self.server) as link:
            follow(link, "r1")
        return self.told()

    def told(self) -> dict[str, Any]:
        """The row of --json; the table must say the same."""
        (row,) = self.lab.rows()
        done = self.lab.task("status")
        assert done.code == 0, done
        table = done.out.splitlines()[1]
        assert row["state"] in table and (row["reason"] is None or row["reason"][:60] in table), (
            table
        )
        return row


@pytest.fixture
def ends(server: LoopbackServer, tmp_path: Path) -> Ends:
    return Ends(server, tmp_path)


RUNNING = ("sh", "-c", "echo up; exec sleep 60")


def test_finished(ends: Ends) -> None:
    row = ends.end("true")
    assert (row["state"], row["cause"], row["exit_code"], row["reason"]) == (
        "finished",
        None,
        0,
        None,
    )


def test_failed_with_exit_code_and_last_error(ends: Ends) -> None:
    row = ends.end("sh", "-c", "echo 'KeyError: no such column'; echo bye; exit 3")
    assert (row["state"], row["cause"], row["exit_code"]) == ("failed", "exit code", 3)
    assert row["reason"] == "exit code 3: KeyError: no such column"


def test_out_of_memory_on_the_gpu(ends: Ends) -> None:
    message = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB."
    row = ends.end(sys.executable, "-c", f"raise SystemExit({message!r})")
    assert (row["state"], row["cause"], row["reason"]) == (
        "failed",
        "gpu memory",
        "out of memory on the GPU",
    )


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of 64 MiB."""
    group = MEMORY_GROUPS / f"test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(64 * MIB))
    except OSError:
        pytest.skip("no control group for memory can be made here")
    yield group
    for pid in (group / "cgroup.procs").read_text().split():
        os.kill(
            int(pid), signal.SIGKILL
        )  # tmux and sh of this test's login; nobody else is in this group
    wait_until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def test_out_of_memory_on_the_host(
    make_server: MakeServer, tmp_path: Path, memory_group: Path
) -> None:
    """A real kill by the kernel: the login, and so all that it starts, lives in a group of 64
    MiB."""
    shell = tmp_path / "shell"
    shell.write_text(f'#!/bin/sh\necho $$ > {memory_group}/cgroup.procs\nexec /bin/sh "$@"\n')
    shell.chmod(0o755)
    ends = Ends(make_server(shell=str(shell)), tmp_path)
    row = ends.end(
        sys.executable, "-c", "print('up', flush=True); x = [b'x' * 1000000 for _ in range(300)]"
    )
    assert (row["state"], row["cause"], row["exit_code"]) == (
        "failed",
        "host memory",
        -signal.SIGKILL,
    )
    assert "killed by the kernel" in row["reason"]


def test_a_kernel_kill_elsewhere_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's own count rises with everybody's kills; it serves only where no group
    counts."""
    own, machine = tmp_path / "own", tmp_path / "vmstat"
    own.write_text("oom_kill_disable 0\noom_kill 2\n")
    machine.write_text("oom_kill 40\n")
    monkeypatch.setattr(processes, "_memory_groups", lambda: [str(own)])
    assert processes.kernel_kills() == 2
    monkeypatch.setattr(processes, "_memory_groups", lambda: [str(tmp_path / "none")])
    assert processes.kernel_kills() == processes._counter("/proc/vmstat")


def test_diverged(ends: Ends) -> None:
    say = (
        "echo 'epoch 3'; echo 'trainer: error: the loss became nan in epoch 3, after 3 restores';"
        " exit 5"
    )
    row = ends.end("sh", "-c", say, finish="summary")
    assert (row["state"], row["cause"], row["exit_code"]) == ("failed", "diverged", 5)
    assert row["reason"].startswith("diverged: ") and "the loss became nan" in row["reason"]
    assert row["reason"] != "exit code 5"


def test_stopped_by_the_user(ends: Ends) -> None:
    ends.start(*RUNNING)
    assert "stopped by" in ends.lab.task("stop").out
    row = ends.told()
    assert (row["state"], row["cause"]) == ("stopped", "stopped") and row["reason"].startswith(
        "stopped by "
    )


def test_killed_from_outside(ends: Ends) -> None:
    ends.start(*RUNNING)
    os.kill(ends.state()["pid"], signal.SIGKILL)
    row = ends.wait()
    assert (row["state"], row["cause"], row["reason"]) == (
        "failed",
        "killed",
        "killed from outside (SIGKILL)",
    )


def test_killed_with_its_supervisor(ends: Ends) -> None:
    ends.start(*RUNNING)
    state = ends.state()
    os.kill(state["supervisor_pid"], signal.SIGKILL)
    alone = ends.told()
    assert (alone["state"], alone["unsupervised"]) == ("running", True)
    os.kill(state["pid"], signal.SIGKILL)
    row = ends.wait()
    assert (row["state"], row["cause"]) == ("failed", "killed") and "its supervisor too" in row[
        "reason"
    ]


def test_the_server_was_rebooted(ends: Ends) -> None:
    ends.start(*RUNNING)
    ends.change(boot_id="another boot")
    row = ends.told()
    assert (row["state"], row["cause"], row["reason"]) == (
        "failed",
        "rebooted",
        "the server was rebooted",
    )


def test_a_process_number_that_was_given_to_another(ends: Ends) -> None:
    ends.start(*RUNNING)
    ends.change(pid=os.getpid(), supervisor_pid=os.getpid())
    row = ends.told()
    assert (row["state"], row["cause"]) == (
        "failed",
        "pid reused",
    ) and "another process has its number" in row["reason"]


def test_on_another_host_of_a_shared_home(ends: Ends) -> None:
    ends.start(*RUNNING)
    ends.change(host="node7", boot_id="of node7", pid=1, supervisor_pid=1)
    row = ends.told()
    assert (row["state"], row["cause"], row["elsewhere"], row["server"]) == (
        "running",
        None,
        True,
        "node7",
    )
    assert "node7" in row["reason"] and "it last wrote 0 min ago" in row["reason"]


def test_on_a_host_that_is_gone_for_good(ends: Ends) -> None:
    """A rented machine that was given back; its disk is on another one now. Where it lives all the
    same, its training ends, and writes nothing over what the next attempt makes."""
    ends.start(*RUNNING)
    wait_until(lambda: (ends.run / "train.log").read_bytes() == b"up\n")
    assert ends.lab.task("stop", gone=True).code == 10, "it is on this very host"
    old = ends.state()
    ends.change(host="node7", boot_id="of node7")
    for file in ends.run.iterdir():
        os.utime(file, (1e9, 1e9))
    assert "it last wrote" in ends.lab.rows()[0]["reason"]
    told = ends.lab.task("stop", gone=True)
    assert told.code == 0 and "its host node7 is gone, says" in told.out, told
    both = [Path(f"/proc/{old[name]}") for name in ("supervisor_pid", "pid")]
    wait_until(lambda: not any(process.exists() for process in both))
    row = ends.told()
    assert (row["state"], row["cause"], row["ended"]) == ("stopped", "host gone", 1e9)
    with agent(ends.server) as link:
        asked = {"argv": ["true"], "finish": "exit"}
        assert (
            link.call("run_resume", root=ROOT, project="p", run="r1", asked=asked)["attempt"] == 2
        )
    assert ends.wait()["state"] == "finished"


def test_still_running_but_the_server_is_unreachable(ends: Ends) -> None:
    """Neither failed nor stopped: nothing can be known of it, and that is what is said."""
    ends.start(*RUNNING)
    config = ends.server.ssh_config.read_text()
    ends.server.ssh_config.write_text(config.replace(f"Port {ends.server.port}", "Port 1"))
    done = ends.lab.task("status")
    ends.lab.json = True
    (row,) = json.loads(ends.lab.task("status").out)
    assert done.code == UNREACHABLE and "failed" not in done.err + done.out
    assert (row["state"], row["run"], row["error"], row["exit_code"]) == (
        "unreachable",
        None,
        "Unreachable",
        None,
    )
    ends.server.ssh_config.write_text(config)
    assert ends.lab.rows()[0]["state"] == "running"


def test_a_launch_that_was_never_carried_out(ends: Ends) -> None:
    ends.end("true")
    ends.change(state="queued", supervisor_pid=None, since=0)
    row = ends.told()
    assert (row["state"], row["cause"]) == ("failed", "not started")


def test_latest_goes_by_the_servers_clock(ends: Ends) -> None:
    """One laptop's clock is a year ahead: its old run must not be taken for the newest for a
    year."""
    with agent(ends.server) as link:
        for run, created in (("ahead", 4e9), ("later", 1e9)):
            start(link, run, ends.release, "true", created=created)
            follow(link, run)
        assert link.call("runs", root=ROOT, run="latest")["runs"][0]["run"] == "later"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mount_small_disk(tmp_path / "disk", 24) as place:
        yield place


SAVER = """
import os, signal, sys, time
place = os.path.join(os.environ["REMOTE_RUN_DIR"], "checkpoints")
os.makedirs(place, exist_ok=True)
def save(text):
    with open(place + "/last.tmp", "wb") as file:
        file.write(text.encode() * 1000000)
    os.replace(place + "/last.tmp", place + "/last.ckpt")
if "ignores" not in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: (save("z"), sys.exit(0)))
save("a")
print("up", flush=True)
with open("filler", "wb", buffering=0) as filler:
    while True:
        filler.write(b"f" * 500000)
        time.sleep(STEP)
"""


@pytest.mark.parametrize("pace", ["slowly", "at once"])
def test_a_disk_that_fills_stops_the_training_with_that_reason_and_a_good_checkpoint(
    make_server: MakeServer, tmp_path: Path, small_disk: Path, pace: str
) -> None:
    """Slowly: it is stopped while there is room to save. At once: its own write fails, and the end
    is recorded all the same."""
    server = make_server(home=small_disk / "home", path=sparse_path(tmp_path / "bin"))
    lab = Lab(server, tmp_path, files={"a": "1"})
    with agent(server) as link:
        release = put(link, make_tree(tmp_path / "code", {"a": "1"}))
        start(
            link,
            "r1",
            release,
            sys.executable,
            "-c",
            SAVER.replace("STEP", "0.15" if pace == "slowly" else "0"),
        )
        follow(link, "r1")
    (row,) = lab.rows()
    assert (row["state"], row["cause"]) == ("failed", "disk full"), row
    assert str(small_disk) in row["reason"]
    checkpoint = (lab.root / "runs" / "r1" / "checkpoints" / "last.ckpt").read_bytes()
    assert len(checkpoint) == 1_000_000 and len(set(checkpoint)) == 1
    assert checkpoint[:1] == (b"z" if pace == "slowly" else b"a")
