"""Locks that hold among processes of one host, and among hosts that share a disk whose flock is
each host's own. A host is here a folder for its temporary files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remote.agent.root import disk, locks

ROOT = Path(__file__).resolve().parents[2]
COUNTS = """
import sys, time
from remote.agent.root import locks
locks.LOOK_S = 0.001
lock, counter, times = sys.argv[1:]
for _ in range(int(times)):
    taken = locks.Lock(lock)
    taken.wait()
    number = int(open(counter).read())
    time.sleep(0.002)
    open(counter, "w").write(str(number + 1))
    taken.close()
    time.sleep(0.005)  # somebody else may have it
"""
HOLDS = """
import sys, time
from remote.agent.root.locks import Lock
lock = Lock(sys.argv[1])
assert lock.take()
print("has it", flush=True)
time.sleep(60)
"""


class Shared:
    """A lock on a disk of several hosts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = str(directory / "lock")

    def on(self, host: str, script: str, *words: str) -> subprocess.Popen[str]:
        place = self.directory / host
        place.mkdir(exist_ok=True)
        own = {"TMPDIR": str(place), "REMOTE_NO_FLOCK": "1", "REMOTE_LOCK_SILENT_S": "3"}
        return subprocess.Popen(
            [sys.executable, "-c", script, self.path, *words],
            env={**os.environ, **own, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )

    def holder(self, host: str) -> subprocess.Popen[str]:
        process = self.on(host, HOLDS)
        assert process.stdout and process.stdout.readline() == "has it\n"
        return process


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """What this process does with it, it does on the host `own`."""
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(locks, "NO_FLOCK", True)
    monkeypatch.setattr(locks, "SILENT_S", 0.6)
    monkeypatch.setattr(locks, "LOOK_S", 0.05)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "own"))
    return Shared(tmp_path)


def seconds_until_taken(path: str) -> float:
    begun, lock = time.monotonic(), locks.Lock(path)
    lock.wait()
    lock.close()
    return time.monotonic() - begun


def test_of_all_processes_of_three_hosts_one_at_a_time(shared: Shared, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    hosts = ("a", "b", "c", "a")
    running = [shared.on(host, COUNTS, str(counter), "25") for host in hosts]
    assert [process.wait(60) for process in running] == [0] * 4
    assert counter.read_text() == "100"
    assert len(list(tmp_path.glob("lock.*"))) <= locks.KEPT, "old ones are removed"


def test_another_host_s_is_waited_for_while_it_gives_a_sign(shared: Shared) -> None:
    process = shared.holder("a")
    try:
        lock = locks.Lock(shared.path)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            assert not lock.take() and not lock.is_free()
            time.sleep(0.1)
        assert lock.holder() == {"who": os.uname().nodename, "since": None}
    finally:
        process.kill()
        process.wait()
    assert seconds_until_taken(shared.path) > 0.5, "it was killed: a silence tells that"
    assert seconds_until_taken(shared.path) < 0.5, "and this one has said that it is over"


def test_a_holder_of_the_own_host_that_was_killed_is_not_waited_for(shared: Shared) -> None:
    process = shared.holder("own")
    lock = locks.Lock(shared.path)
    assert not lock.take()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert lock.take(), "flock, which is the host's own, tells so at once"
    lock.close()


def test_it_is_handed_over_to_a_process_that_works_on(shared: Shared, tmp_path: Path) -> None:
    """As an agent does it that starts a builder and ends."""
    lock = locks.Lock(shared.path)
    assert lock.take()
    words = "from remote.agent.root.locks import hold; import sys; sys.exit(hold(sys.argv[1:]))"
    command = [
        "sh",
        "-c",
        f"touch {tmp_path}/begun; while [ ! -e {tmp_path}/go ]; do sleep .1; done",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", words, str(lock.file), lock.record, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "REMOTE_LOCK_SILENT_S": "0.6"},
        pass_fds=[lock.file],
    )
    lock.hand_over()
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    other = shared.on("a", COUNTS, str(tmp_path / "counter"), "1")
    (tmp_path / "counter").write_text("0")
    assert not locks.Lock(shared.path).take(), "it is held on this host"
    time.sleep(2)
    assert other.poll() is None and (tmp_path / "counter").read_text() == "0", "and on others"
    (tmp_path / "go").touch()
    assert process.wait(20) == 0 and other.wait(20) == 0
    assert (tmp_path / "counter").read_text() == "1"


def test_a_disk_of_one_host_needs_no_such_files(tmp_path: Path) -> None:
    lock = locks.Lock(str(tmp_path / "lock"))
    assert lock.turn is None or disk.is_shared(str(tmp_path))
    assert not disk.is_shared("/dev/shm") and disk.is_shared("/proc")
