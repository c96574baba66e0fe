"""Stands beside one training on the server: starts it, records what happens, and is the only one
who tells how it ended."""

import fcntl
import os
import signal
import threading
import time
from typing import Any, Dict, List, Optional

from remote.agent.machine.processes import boot_id, start_time
from remote.agent.root.disk import mount_of
from remote.agent.root.paths import read_json, write_json
from remote.agent.runs import notify
from remote.agent.runs.disk_guard import DiskGuard
from remote.agent.runs.gpu_usage import Sampler
from remote.agent.runs.outcome import Ended, Outcome, may_restart, tell_outcome
from remote.agent.runs.process import Process
from remote.agent.runs.queue import take_gpus, wanted_by
from remote.agent.runs.records import ATTEMPT

DISK_EVERY_S = 1.0
RESTART_S = float(os.environ.get("REMOTE_RESTART_S", "5"))
"""Times the number of the restart, at most a minute: what broke may mend itself."""


def main(arguments: List[str]) -> int:
    return Supervisor(arguments[0]).run()


class Supervisor:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.asked: Dict[str, Any] = {}
        self.state: Dict[str, Any] = {}
        self.stop = threading.Event()
        self.disk = DiskGuard(directory)
        self.disk_problem: Optional[str] = None
        self.disk_seen = 0.0
        self.sampler: Optional[Sampler] = None

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
            reason = f"the supervisor failed: {error}"
            self.record_end(Outcome("failed", reason, "supervisor"))
            raise
        finally:
            self.notify()

    def record(self, **changes: Any) -> None:
        self.state.update(changes)
        try:
            write_json(self.path("state.json"), self.state)
        except OSError:
            self.disk.free_spare()
            write_json(self.path("state.json"), self.state)

    def record_end(self, outcome: Outcome, **more: Any) -> None:
        self.record(**outcome.as_state(), ended=time.time(), **more)

    def supervise(self) -> int:
        self.disk.keep_spare()
        if self.asked.get("queue") and not self.wait_for_gpus():
            reason = f"{self.who_stopped()} while it waited"
            self.record_end(Outcome("stopped", reason, "stopped"))
            return 1
        most, restarts = int(self.asked.get("max_restarts") or 0), 0
        while not self.run_once(restarts < most):
            restarts += 1
            self.restart(restarts)
            if self.stop.is_set():
                self.end(Outcome("stopped", self.who_stopped(), "stopped"), exit_code=None)
                break
        return 0 if self.state["state"] == "finished" else 1

    def run_once(self, again: bool) -> bool:
        """Start it and wait. True where that was the end, which is recorded then; False where
        another attempt is to follow."""
        process = Process(self.directory, self.asked, len(self.state.get("attempts") or []) + 1)
        started = time.time()
        problem = process.start()
        if problem:
            self.end(Outcome("failed", problem, "not started"), started=started)
            return True
        self.record(state="running", pid=process.pid, pid_started=process.started, started=started)
        self.sampler = self.sampler or Sampler(self.directory, self.asked.get("gpus"))
        process.wait(self.must_end, lambda: self.record(stopping=time.time()))
        ended = self.look(process)
        outcome = tell_outcome(ended)
        if again and may_restart(ended, outcome):
            last = dict(self.state, **outcome.as_state(), ended=time.time(), exit_code=ended.code)
            attempts = [
                *(self.state.get("attempts") or []),
                {key: last.get(key) for key in ATTEMPT},
            ]
            self.record(attempts=attempts)
            return False
        self.end(outcome, exit_code=ended.code)
        return True

    def end(self, outcome: Outcome, **more: Any) -> None:
        self.disk.free_spare()
        if self.sampler is not None:
            self.sampler.end()
        self.record_end(outcome, **more)

    def must_end(self) -> bool:
        if time.monotonic() - self.disk_seen > DISK_EVERY_S:
            self.disk_seen = time.monotonic()
            self.disk_problem = self.disk.problem()
        return self.stop.is_set() or self.disk_problem is not None

    def look(self, process: Process) -> Ended:
        interrupted = process.was_interrupted()
        return Ended(
            process.code,
            is_trainer=self.asked.get("finish") == "summary",
            has_summary=os.path.exists(self.path("summary.json")),
            tail=process.log_tail(),
            mount=mount_of(self.directory),
            stopped=self.who_stopped() if self.stop.is_set() else None,
            disk_problem=self.disk_problem,
            interrupted=interrupted,
            kernel_killed=process.kernel_killed(),
        )

    def restart(self, number: int) -> None:
        """Wait for the next attempt, which goes on from the newest checkpoint where there is
        one."""
        saved = self.path("checkpoints")
        if os.path.isdir(saved) and os.listdir(saved) and self.asked.get("resume_argv"):
            self.asked["argv"] = self.asked["resume_argv"]
        reason, most = self.state["attempts"][-1]["reason"], self.asked.get("max_restarts")
        with open(self.path("train.log"), "ab") as log:
            line = f"supervisor: {reason}; restarting ({number} of {most})\n"
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

        wanted = wanted_by(self.asked)
        return take_gpus(self.directory, wanted, self.stop, tell, take)

    def who_stopped(self) -> str:
        who = (read_json(self.path("stop.json")) or {}).get("who")
        return f"stopped by {who}" if who else "stopped by a signal"
