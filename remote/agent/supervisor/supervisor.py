"""Stands beside one training on the server: starts it, records what happens, and is the only one
who tells how it ended."""

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any, Dict, List, Optional, Tuple

from remote.agent.launchers import slurm
from remote.agent.launchers.seam import Job, claim, mark_path
from remote.agent.launchers.slurm_words import AGAIN
from remote.agent.machine.processes import boot_id, start_time
from remote.agent.root import program
from remote.agent.root.calls import Refusal
from remote.agent.root.disk import mount_of
from remote.agent.root.paths import layout_of, read_json, read_text, write_json
from remote.agent.run_files.attempts import (
    after_job,
    next_attempt,
    past_attempts,
    restarts_left,
    resumed,
    tell_restart,
)
from remote.agent.run_files.private import ADDRESS
from remote.agent.run_files.records import read_step
from remote.agent.runs.listing import submit_waiting
from remote.agent.runs.members import node_of_job, nodes_of
from remote.agent.runs.queue import Waiting, wanted_by
from remote.agent.shared.states import FINAL
from remote.agent.supervisor import notify
from remote.agent.supervisor.disk_guard import DiskGuard
from remote.agent.supervisor.gpu_usage import Sampler
from remote.agent.supervisor.group import First, Group, Member, NotTogether
from remote.agent.supervisor.limits import Limits
from remote.agent.supervisor.outcome import Ended, Outcome, may_restart, tell_outcome
from remote.agent.supervisor.peers import ECHO, Report
from remote.agent.training.process import Process

DISK_EVERY_S = 1.0
HEARTBEAT_S = 30.0
RESTART_S = float(os.environ.get("REMOTE_RESTART_S", "5"))
"""Times the number of the restart, at most a minute: what broke may mend itself."""
END_WAIT_S, END_AGAIN_S = 600.0, 5.0


def main(arguments: List[str]) -> int:
    directory, token, *first = arguments
    if first:
        directory, token = node_of_job(directory, token, *first)
    return Supervisor(directory, token).run()


class Superseded(Exception):
    """Another attempt has the run: this one writes nothing any more."""


class Supervisor:
    def __init__(self, directory: str, token: str) -> None:
        self.directory = directory
        self.token = token
        self.asked: Dict[str, Any] = {}
        self.state: Dict[str, Any] = {}
        self.stop = threading.Event()
        self.disk = DiskGuard(directory)
        self.disk_problem: Optional[str] = None
        self.disk_seen = 0.0
        self.sampler: Optional[Sampler] = None
        self.limits = Limits({})
        self.limit: Optional[Tuple[str, str, str]] = None
        self.process: Optional[Process] = None
        self.group: Optional[Group] = None
        self.beat = 0.0
        self.untold = False

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def run(self) -> int:
        """Runs the training once, whoever else was started for the same run. Returns the exit code
        for the shell."""
        os.umask(0o077)
        if not claim(mark_path(self.directory, self.token)):
            return 0
        self.asked = read_json(self.path("run.json")) or {}
        self.state = read_json(self.path("state.json")) or {}
        if self.state.get("state") != "queued" or self.state.get("supervisor_pid"):
            return 0
        signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        signal.signal(signal.SIGINT, lambda *_: self.stop.set())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            self.record(
                host=os.uname().nodename,
                boot_id=boot_id(),
                supervisor_pid=os.getpid(),
                supervisor_started=start_time(os.getpid()),
                launched=self.launched,
            )
            # A stop from before had nobody to signal.
            self.look_around()
            return self.supervise()
        except Superseded:
            return self.give_way()
        except Exception as error:
            reason = f"the supervisor failed: {error}"
            if self.process is not None:
                self.process.end_all()
            self.record_end(Outcome("failed", reason, "supervisor"))
            raise
        finally:
            self.notify()
            self.submit_others()

    @property
    def launched(self) -> str:
        if self.asked.get("launcher") == "slurm":
            return "slurm"
        return "tmux" if os.environ.get("TMUX") else "setsid"

    def give_way(self) -> int:
        if self.process is not None:
            self.process.kill()
        return 0

    def raise_if_superseded(self) -> None:
        recorded = read_json(self.path("state.json"))
        if recorded is not None and recorded.get("token") != self.token:
            raise Superseded

    def record(self, **changes: Any) -> None:
        """On a full disk, with what was held back for it."""
        try:
            self.write(**changes)
        except OSError:
            self.disk.free_spare()
            self.write()

    def tell(self, **changes: Any) -> None:
        """No reason to end a training on a disk that is full, or away for a while: it is written
        down later."""
        self.untold = True
        with contextlib.suppress(OSError):
            self.write(**changes)

    def write(self, **changes: Any) -> None:
        self.raise_if_superseded()
        self.state.update(changes)
        write_json(self.path("state.json"), self.state)
        self.untold = False

    def record_end(self, outcome: Outcome, **more: Any) -> None:
        """Nobody else will tell it: a disk that takes nothing is waited for, for a while."""
        self.state.update(outcome.as_state(), ended=time.time(), **more)
        late = time.monotonic() + END_WAIT_S
        while os.path.isdir(self.directory) and time.monotonic() < late:
            with contextlib.suppress(OSError):
                return self.record()
            time.sleep(END_AGAIN_S)
        self.record()

    def supervise(self) -> int:
        self.disk.keep_spare()
        if self.asked.get("queue") and not self.wait_for_gpus():
            reason = f"{self.who_stopped()} while it waited"
            self.record_end(Outcome("stopped", reason, "stopped"))
            return 1
        self.limits = Limits(self.asked)
        self.group = self.make_group()
        while not self.run_once(restarts_left(self.state, self.asked) > 0):
            self.restart()
            if self.stop.is_set():
                scheduled = self.why_signalled() or ("stopped", self.who_stopped(), "stopped")
                again = restarts_left(self.state, self.asked) > 0
                self.conclude(Outcome(*scheduled), again, exit_code=None)
                break
        if self.group is not None:
            self.group.end_members()
        return 0 if self.state["state"] == "finished" else 1

    @property
    def leads(self) -> bool:
        """Whether what the training writes is here: of several hosts, the first one."""
        return not nodes_of(self.asked).get("rank")

    def make_group(self) -> Optional[Group]:
        """Where the training runs on several hosts."""
        nodes = nodes_of(self.asked)
        if not nodes:
            return None
        home = str(self.asked.get("home") or self.directory)
        return First(home, self.asked, self.token) if self.leads else Member(home, self.asked)

    def come_together(self, group: Group) -> bool:
        """With the other hosts. False where that failed, which is recorded then."""
        try:
            group.join(self.asked_to_stop)
        except NotTogether as problem:
            group.close()
            self.end(Outcome(*problem.report[:3]), exit_code=None)
            return False
        self.asked = dict(self.asked, variables=group.variables)
        if self.state.get("restarts"):
            # The first host's checkpoints have come by now.
            self.asked = resumed(group.home, self.asked)
        self.tell(nodes=group.names)
        return True

    def asked_to_stop(self) -> Optional[Report]:
        self.look_around()
        return self.why_ending() if self.stop.is_set() else None

    def why_ending(self) -> Report:
        """For the other hosts: they are to end, too."""
        scheduled = self.why_signalled() if self.stop.is_set() else self.limit
        if scheduled:
            return Report(*scheduled)
        if self.stop.is_set():
            return Report("stopped", self.who_stopped(), "stopped")
        return Report("failed", self.disk_problem, "disk full")

    def agree(self, group: Group, own: Report, again: bool) -> Tuple[Outcome, bool]:
        """How all of it has ended, and whether all start again."""
        verdict = group.agree(own, again, self.asked_to_stop)
        group.close()
        group.begin()
        return Outcome(*verdict[:3]), verdict.again

    def run_once(self, again: bool) -> bool:
        """Start it and wait. True where that was the end, which is recorded then; False where
        another attempt is to follow."""
        attempt = len(self.state.get("attempts") or []) + 1
        if self.group is not None:
            self.group.attempt = attempt
            if not self.come_together(self.group):
                return True
            attempt = self.group.attempt
        process = self.process = Process(self.directory, self.asked, attempt)
        started, code = time.time(), None
        problem = process.start()
        if problem:
            outcome, restart = Outcome("failed", problem, "not started"), False
        else:
            self.tell(
                state="running", pid=process.pid, pid_started=process.started, started=started
            )
            self.sampler = self.sampler or Sampler(self.directory, self.asked.get("gpus"))
            process.wait(self.must_end, lambda: self.before_end(process))
            ended = self.look(process)
            outcome, code = tell_outcome(ended), ended.code
            restart = again and may_restart(ended, outcome)
        if self.group is not None:
            tail = process.log_tail()
            echo = bool(process.told or ECHO.search(tail)) and not self.disk_problem
            report = Report(*outcome, again=restart, echo=echo)
            outcome, restart = self.agree(self.group, report, again)
        last = dict(self.state, **outcome.as_state(), ended=time.time(), exit_code=code)
        if restart:
            restarts = int(self.state.get("restarts") or 0) + 1
            self.tell(attempts=past_attempts(last), restarts=restarts)
            return False
        self.conclude(outcome, again, exit_code=code, started=started)
        return True

    def conclude(self, outcome: Outcome, again: bool, **more: Any) -> None:
        """The run's end; or, where Slurm has ended it and it may go on, another job's beginning."""
        if again and outcome.cause in AGAIN and self.launched == "slurm" and self.leads:
            self.submit_next(dict(self.state, **outcome.as_state(), ended=time.time(), **more))
        else:
            self.end(outcome, **more)

    def before_end(self, process: Process) -> None:
        self.tell(stopping=time.time())
        if self.group is not None:
            if self.group.ending is None:
                self.group.tell(self.why_ending())
            process.patience_s = self.group.patience_s or process.patience_s

    def end(self, outcome: Outcome, **more: Any) -> None:
        self.wind_up()
        self.record_end(outcome, **more)

    def wind_up(self) -> None:
        self.disk.free_spare()
        if self.sampler is not None:
            self.sampler.end()

    def must_end(self) -> bool:
        if time.monotonic() - self.disk_seen > DISK_EVERY_S:
            self.disk_seen = time.monotonic()
            self.disk_problem = self.disk.problem()
            self.look_around()
            self.limit = self.limits.reached(self.sampler)
        ending = self.group is not None and self.group.ending
        return bool(self.stop.is_set() or self.disk_problem or self.limit or ending)

    def look_around(self) -> None:
        """What other hosts may have written meanwhile; and that this one lives."""
        self.raise_if_superseded()
        if os.path.exists(self.path("stop.json")):
            self.stop.set()
        if self.launched == "slurm" and time.monotonic() - self.beat > HEARTBEAT_S:
            self.beat = time.monotonic()
            self.tell(heartbeat=time.time())
        elif self.untold:
            self.tell()

    def look(self, process: Process) -> Ended:
        interrupted = process.was_interrupted()
        scheduled: Optional[Tuple[str, Optional[str], Optional[str]]] = self.limit
        if self.stop.is_set():
            scheduled = self.why_signalled()
        elif self.group is not None and self.group.ending and process.told:
            scheduled = self.group.ending[:3]
        return Ended(
            process.code,
            is_trainer=self.asked.get("finish") == "summary" and self.leads,
            has_summary=os.path.exists(self.path("summary.json")),
            tail=process.log_tail(),
            mount=mount_of(self.directory),
            stopped=self.who_stopped() if self.stop.is_set() else None,
            scheduled=scheduled,
            disk_problem=self.disk_problem,
            interrupted=interrupted,
            kernel_killed=process.kernel_killed(),
            step=read_step(self.directory),
        )

    def restart(self) -> None:
        """Wait for the next attempt, which goes on from the newest checkpoint where there is
        one."""
        self.asked = resumed(self.directory, self.asked)
        tell_restart(self.directory, self.state, self.asked)
        self.stop.wait(min(60.0, RESTART_S * self.state["restarts"]))

    def why_signalled(self) -> Optional[Tuple[str, str, str]]:
        """Of a SIGTERM that Slurm has sent by itself: state, reason, cause."""
        if self.launched != "slurm" or os.path.exists(self.path("stop.json")):
            return None
        return slurm.why_signalled(self.asked, float(self.state.get("started") or 0))

    def submit_next(self, ended: Dict[str, Any]) -> None:
        """The next attempt is a job of its own, behind this one. Where nodes may not submit, the
        next `status` does."""
        self.wind_up()
        self.raise_if_superseded()
        asked = after_job(self.asked)
        self.state = next_attempt(self.directory, ended, asked)
        token = str(self.state["token"])
        words = program.command(sys.argv[0], "supervise", self.directory, token)
        try:
            slurm.start(Job(self.directory, words, asked, token))
        except (Refusal, OSError) as problem:
            sys.stderr.write(f"the next attempt was not submitted here: {problem}\n")

    def notify(self) -> None:
        """Post to the address that it was given, if there is one, once the run has ended."""
        if self.state.get("state") not in FINAL:
            return
        address = read_text(self.path(ADDRESS)).strip()
        if not address:
            return
        summary = read_json(self.path("summary.json")) or {}
        facts = notify.facts_of(os.path.basename(self.directory), self.asked, self.state, summary)
        self.tell(notified=notify.post(address, facts))

    def submit_others(self) -> None:
        """A place in the site's count of jobs may be free now. Never harms this run, which is
        over."""
        if self.launched != "slurm" or not self.leads:
            return
        try:
            name = os.path.basename(sys.argv[0])
            os.environ.setdefault("REMOTE_AGENT_HASH", name[: -len(".pyz")])
            submit_waiting(layout_of(self.directory))
        except Exception as problem:
            sys.stderr.write(f"runs that wait were not submitted here: {problem}\n")

    def wait_for_gpus(self) -> bool:
        """Its place in the queue is the time since when it is queued. False where it was
        stopped."""

        def tell(reason: str) -> None:
            self.look_around()
            if self.state.get("waiting") != reason:
                self.tell(waiting=reason)

        def take(uuids: List[str], indices: List[str]) -> None:
            self.asked.update(gpus=uuids, gpu_names=indices, queue=False)
            write_json(self.path("run.json"), self.asked)
            self.record(waiting=None)

        return Waiting(self.directory, self.stop, tell, take).wait(wanted_by(self.asked))

    def who_stopped(self) -> str:
        who = (read_json(self.path("stop.json")) or {}).get("who")
        return f"stopped by {who}" if who else "stopped by a signal"
