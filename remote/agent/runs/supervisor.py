"""Stands beside one training on the server: starts it, records what happens, and is the only one
who tells how it ended."""

import csv
import fcntl
import os
import re
import signal
import subprocess
import threading
import time
from typing import Any, Dict, List, Optional

from remote.agent.machine import gpus
from remote.agent.machine.processes import (
    boot_id,
    child_start_time,
    children_of,
    group_members,
    kernel_kills,
    reads_pipe,
    start_time,
)
from remote.agent.root.paths import mount_of, read_json, write_json
from remote.agent.runs import notify, terminal
from remote.agent.runs.queue import take_gpus
from remote.agent.runs.records import ATTEMPT
from remote.agent.runs.surroundings import run_environment

STOP_S = 60.0
"""From SIGTERM to SIGKILL: the time a trainer has to save."""
SAMPLE_EVERY_S = 10.0
DISK_EVERY_S = 1.0
LEAST_FREE = 4 << 20
"""Bytes that must be free for the training to go on, or one checkpoint more than that."""
SPARE = 64 << 10
"""Held back so that the end can be recorded on a full disk."""
DIVERGED, DISK_FULL = 5, 7
"""The trainer's exit code for a loss that became infinite, after all its ways back were used up."""
FRUITLESS = (2, 3, 4, DISK_FULL, DIVERGED)
"""Exit codes of the trainer that another try can't change."""
RESTART_S = float(os.environ.get("REMOTE_RESTART_S", "5"))
"""Times the number of the restart, at most a minute: what broke may mend itself."""
TAIL = 64 << 10
INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""How a program ends that somebody has interrupted; the last is our trainer's word for stopped."""


def main(arguments: List[str]) -> int:
    return Supervisor(arguments[0]).run()


class Supervisor:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.asked: Dict[str, Any] = {}
        self.state: Dict[str, Any] = {}
        self.stop = threading.Event()
        self.child: Optional[subprocess.Popen[bytes]] = None
        self.disk_problem: Optional[str] = None
        self.watched = False
        self.log_from = 0
        self.terminal = 0
        self.interrupted = False
        self.sampling = threading.Lock()
        self.ended = False

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def run(self) -> int:
        """Runs the training once, whoever else was started for the same run. Returns the exit code
        for the shell."""
        os.umask(0o077)
        lock = os.open(self.path(".supervisor.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        self.asked = read_json(self.path("run.json")) or {}
        self.state = read_json(self.path("state.json")) or {}
        if self.state.get("state") != "queued" or self.state.get("supervisor_pid"):
            return 0
        signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        signal.signal(signal.SIGINT, lambda *_: self.stop.set())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.record(
            host=os.uname().nodename,
            boot_id=boot_id(),
            supervisor_pid=os.getpid(),
            supervisor_started=start_time(os.getpid()),
            launched="tmux" if os.environ.get("TMUX") else "setsid",
        )
        try:
            return self.supervise()
        except Exception as error:
            self.record(
                state="failed",
                reason=f"the supervisor failed: {error}",
                cause="supervisor",
                ended=time.time(),
            )
            raise
        finally:
            self.notify()

    def record(self, **changes: Any) -> None:
        self.state.update(changes)
        try:
            write_json(self.path("state.json"), self.state)
        except OSError:
            self.free_spare()
            write_json(self.path("state.json"), self.state)

    def keep_spare(self) -> None:
        with open(self.path(".spare"), "wb") as file:
            file.write(b"\xa5" * SPARE)

    def free_spare(self) -> None:
        try:
            os.unlink(self.path(".spare"))
        except OSError:
            pass

    def supervise(self) -> int:
        self.keep_spare()
        if self.asked.get("queue") and not self.wait_for_gpus():
            self.record(
                state="stopped",
                reason=f"{self.who_stopped()} while it waited",
                cause="stopped",
                ended=time.time(),
            )
            return 1
        restarts = 0
        while True:
            ended = self.run_once()
            if restarts >= int(self.asked.get("max_restarts") or 0) or not self.may_restart(ended):
                break
            restarts += 1
            self.restart(ended, restarts)
            if self.stop.is_set():
                ended = {
                    "state": "stopped",
                    "reason": self.who_stopped(),
                    "cause": "stopped",
                    "ended": time.time(),
                    "exit_code": None,
                }
                break
        self.free_spare()
        with self.sampling:
            self.ended = True  # what is fetched from now on changes no more
        self.record(**ended)
        return 0 if self.state["state"] == "finished" else 1

    def run_once(self) -> Dict[str, Any]:
        """Start it and wait; returns how it ended, which is not recorded yet."""
        kills = kernel_kills()
        started = time.time()
        problem = self.start()
        if problem:
            return {
                "state": "failed",
                "reason": problem,
                "cause": "not started",
                "started": started,
                "ended": time.time(),
            }
        assert self.child is not None
        pid = self.child.pid
        self.record(state="running", pid=pid, pid_started=child_start_time(pid), started=started)
        if not self.watched:
            self.watched = True
            threading.Thread(target=self.sample_gpus, daemon=True).start()
        code = self.wait()
        self.kill_rest(pid)
        self.interrupted = terminal.wait(self.terminal) and self.interrupted_by_hand()
        return dict(self.outcome(code, kills), ended=time.time(), exit_code=code)

    def may_restart(self, ended: Dict[str, Any]) -> bool:
        """After what another try may mend: not after a wrong option, a missing image, a divergence,
        a full disk or a stop."""
        if self.stop.is_set() or ended.get("cause") not in (
            "gpu memory",
            "host memory",
            "killed",
            "exit code",
        ):
            return False
        return self.asked.get("finish") != "summary" or ended.get("exit_code") not in FRUITLESS

    def restart(self, ended: Dict[str, Any], number: int) -> None:
        """The next attempt, from the newest checkpoint where there is one."""
        attempts = list(self.state.get("attempts") or [])
        attempts.append({key: dict(self.state, **ended).get(key) for key in ATTEMPT})
        self.record(attempts=attempts)
        if (
            os.path.isdir(self.path("checkpoints"))
            and os.listdir(self.path("checkpoints"))
            and self.asked.get("resume_argv")
        ):
            self.asked["argv"] = self.asked["resume_argv"]
        with open(self.path("train.log"), "ab") as log:
            line = (
                f"supervisor: {ended.get('reason')}; restarting ({number} of"
                f" {self.asked.get('max_restarts')})\n"
            )
            log.write(line.encode("utf-8", "replace"))
        self.stop.wait(min(60.0, RESTART_S * number))

    def notify(self) -> None:
        """Post to the address that lies in .notify, if there is one."""
        try:
            with open(self.path(".notify")) as file:
                address = file.read().strip()
            summary = read_json(self.path("summary.json")) or {}
            facts = notify.facts_of(
                os.path.basename(self.directory), self.asked, self.state, summary
            )
            self.record(notified=notify.post(address, facts))
        except OSError:
            pass

    def wait_for_gpus(self) -> bool:
        """Its place in the queue is the time since when it is queued. False where it was
        stopped."""

        def tell(reason: str) -> None:
            if self.state.get("waiting") != reason:
                self.record(waiting=reason)

        def take(uuids: List[str], indices: List[str]) -> None:
            self.asked.update(gpus=uuids, gpu_names=indices, queue=False)
            write_json(self.path("run.json"), self.asked)
            self.record(waiting=None)

        return take_gpus(
            self.directory, int(self.asked.get("wanted_gpus") or 1), self.stop, tell, take
        )

    def who_stopped(self) -> str:
        who = (read_json(self.path("stop.json")) or {}).get("who")
        return f"stopped by {who}" if who else "stopped by a signal"

    def start(self) -> Optional[str]:
        """Start the command in a terminal of its own; returns why it could not be started."""
        log = self.path("train.log")
        self.log_from = os.path.getsize(log) if os.path.exists(log) else 0
        attempt = len(self.state.get("attempts") or []) + 1
        self.child = None
        own, programs = terminal.open_terminal()
        self.terminal = terminal.fork(self.directory, own)
        os.close(own)
        try:
            self.child = subprocess.Popen(
                [str(word) for word in self.asked["argv"]],
                cwd=self.path("work"),
                env=run_environment(self.directory, self.asked, attempt),
                stdin=programs,
                stdout=programs,
                stderr=programs,
                start_new_session=True,
                preexec_fn=terminal.attach_program,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            os.write(
                programs, f"the command could not be started: {error}\n".encode("utf-8", "replace")
            )
            return f"the command could not be started: {error}"
        finally:
            os.close(programs)
            if self.child is None:
                terminal.wait(self.terminal)
        return None

    def wait(self) -> int:
        assert self.child is not None
        looked = 0.0
        while True:
            try:
                return self.child.wait(0.25)
            except subprocess.TimeoutExpired:
                pass
            if time.monotonic() - looked > DISK_EVERY_S:
                looked = time.monotonic()
                self.disk_problem = self.find_disk_problem()
            if self.stop.is_set() or self.disk_problem:
                break
        # SIGTERM goes to the trainer alone: its loader workers must live until it has saved.
        self.record(stopping=time.time())
        self.terminate()
        try:
            return self.child.wait(float(self.asked.get("stop_s") or STOP_S))
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()

    def terminate(self) -> None:
        """The trainer alone; where a shell runs it, the shell and what it has started. What reads
        from a pipe ends by itself."""
        assert self.child is not None
        self.child.terminate()
        if self.asked["argv"][0] == "bash":
            for pid in children_of(self.child.pid):
                if not reads_pipe(pid):
                    os.kill(pid, signal.SIGTERM)

    def interrupted_by_hand(self) -> bool:
        return terminal.read_shown(self.directory).get("interrupted") is True

    def find_disk_problem(self) -> Optional[str]:
        """Told while one checkpoint can still be written, so that stopping saves the state. None:
        there is room."""
        need = LEAST_FREE
        try:
            disk = os.statvfs(self.directory)
            with os.scandir(self.path("checkpoints")) as scan:
                need += max([entry.stat().st_size for entry in scan if entry.is_file()], default=0)
        except FileNotFoundError:
            pass
        except OSError:
            return None
        free = disk.f_bavail * disk.f_frsize
        return (
            f"the disk at {mount_of(self.directory)} is full: {free >> 20} MiB are free"
            if free < need
            else None
        )

    def kill_rest(self, group: int) -> None:
        for _ in range(20):
            members = [pid for pid in group_members(group) if pid != os.getpid()]
            if not members:
                return
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            time.sleep(0.05)

    def outcome(self, code: int, kills_before: Optional[int]) -> Dict[str, Any]:
        """State, reason and cause from the exit code, our own doing, the kernel's counters and the
        log's end."""
        trainer = self.asked.get("finish") == "summary"
        # A command of one's own may well exit with 0 when it is stopped; only a summary says that
        # all was done.
        done = (
            os.path.exists(self.path("summary.json"))
            if trainer
            else code == 0 and not (self.stop.is_set() or self.disk_problem)
        )
        if done:
            return {"state": "finished", "reason": None, "cause": None}
        if self.disk_problem and not self.stop.is_set():
            return {
                "state": "failed",
                "reason": f"{self.disk_problem}; it was stopped, its last checkpoint is kept",
                "cause": "disk full",
            }
        if self.stop.is_set():
            return {"state": "stopped", "reason": self.who_stopped(), "cause": "stopped"}
        if self.interrupted and code in INTERRUPTED:
            return {
                "state": "stopped",
                "reason": "interrupted with Ctrl-C in its terminal",
                "cause": "stopped",
            }
        tail = self.log_tail()
        if re.search(
            r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY", tail
        ):
            return {"state": "failed", "reason": "out of memory on the GPU", "cause": "gpu memory"}
        # The log may lie on that disk as well: then the code alone tells.
        if (trainer and code == DISK_FULL) or (
            code and re.search(r"No space left on device|Disk quota exceeded", tail)
        ):
            place = mount_of(self.directory)
            return {
                "state": "failed",
                "reason": f"the disk at {place} is full, or its quota is used up",
                "cause": "disk full",
            }
        if code == -signal.SIGKILL or "killed by signal: Killed" in tail:
            kills = kernel_kills()
            if kills_before is not None and kills is not None and kills > kills_before:
                return {
                    "state": "failed",
                    "reason": "out of memory on the host: killed by the kernel",
                    "cause": "host memory",
                }
        if code < 0:
            name = (
                signal.Signals(-code).name
                if -code in [s.value for s in signal.Signals]
                else f"signal {-code}"
            )
            return {"state": "failed", "reason": f"killed from outside ({name})", "cause": "killed"}
        last = last_error_line(tail)
        if trainer and code == DIVERGED:
            return {
                "state": "failed",
                "reason": f"diverged{': ' + last if last else ''}",
                "cause": "diverged",
            }
        if code == 0:
            return {
                "state": "failed",
                "reason": "it ended without a summary" + (f": {last}" if last else ""),
                "cause": "no summary",
            }
        return {
            "state": "failed",
            "reason": f"exit code {code}" + (f": {last}" if last else ""),
            "cause": "exit code",
        }

    def log_tail(self) -> str:
        try:
            with open(self.path("train.log"), "rb") as file:
                # What an attempt before said is not this one's reason.
                file.seek(max(self.log_from, os.fstat(file.fileno()).st_size - TAIL))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def sample_gpus(self) -> None:
        """gpu.csv: the use of the run's own GPUs over time. Ends for good where there is no
        nvidia-smi."""
        while True:
            rows = gpus.sample_usage(self.asked.get("gpus"))
            if rows is None:
                return
            with self.sampling, open(self.path("gpu.csv"), "a", newline="") as file:
                if self.ended:
                    return
                writer = csv.writer(file)
                if not file.tell():
                    writer.writerow(
                        [
                            "time",
                            "index",
                            "uuid",
                            "utilization_percent",
                            "memory_used_mib",
                            "memory_total_mib",
                        ]
                    )
                for row in rows:
                    writer.writerow([round(time.time(), 1), *row])
            time.sleep(SAMPLE_EVERY_S)


def last_error_line(tail: str) -> str:
    """The line that a person would quote: the last one that looks like an error, else the last one
    at all."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    for line in reversed(lines[-200:]):
        if re.match(r"(\w+\.)*\w*(Error|Exception|Interrupt)\b|error:|fatal:", line, re.IGNORECASE):
            return line[:300]
    return lines[-1][:300] if lines else ""
