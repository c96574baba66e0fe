"""Stands beside one training on the server: starts it, records what happens, and is the only one
who tells how it ended."""

import os
import sys
import time
from typing import Any, List, Optional, Tuple

from remote.agent.group.first import First
from remote.agent.group.group import Group, NotTogether
from remote.agent.group.member import Member
from remote.agent.group.peers import ECHO, Report
from remote.agent.launchers import slurm
from remote.agent.launchers.seam import Job, claim, mark_path
from remote.agent.launchers.slurm_words import AGAIN
from remote.agent.machine.processes import boot_id, start_time
from remote.agent.root import program
from remote.agent.root.calls import Refusal
from remote.agent.root.disk import mount_of
from remote.agent.root.run_json import load, save
from remote.agent.run_files.attempts import (
    after_job,
    next_attempt,
    past_attempts,
    restarts_left,
    resumed,
    tell_restart,
)
from remote.agent.run_files.records import read_step
from remote.agent.runs.members import node_of_job
from remote.agent.runs.queue import Texts, Waiting
from remote.agent.shared.run_records import Asked, RunDetail
from remote.agent.shared.states import Outcome
from remote.agent.supervisor.afterwards import submit_others, tell_its_address
from remote.agent.supervisor.endings import Endings
from remote.agent.supervisor.gpu_usage import Sampler
from remote.agent.supervisor.outcome import Ended, may_restart, tell_outcome
from remote.agent.supervisor.run_state import RunState, Superseded
from remote.agent.training.process import Process

RESTART_S = float(os.environ.get("REMOTE_RESTART_S", "5"))
"""Times the number of the restart, at most a minute: what broke may mend itself."""


def main(arguments: List[str]) -> int:
    directory, token, *first = arguments
    if first:
        directory, token = node_of_job(directory, token, *first)
    os.umask(0o077)
    # Once, whoever else was started for the same run.
    if not claim(mark_path(directory, token)):
        return 0
    state = RunState(directory, token)
    if state.known.state != "queued" or state.known.supervisor_pid:
        return 0
    return Supervisor(state, load(Asked, directory)).run()


class Supervisor:
    def __init__(self, state: RunState, asked: Asked) -> None:
        self.state = state
        self.directory = state.directory
        self.asked = asked
        self.endings = Endings(state, asked)
        # What the training writes is here: of several hosts, on the first one.
        self.leads = not asked.nodes.rank
        self.sampler: Optional[Sampler] = None
        self.process: Optional[Process] = None
        self.group: Optional[Group] = None

    def run(self) -> int:
        """Returns the exit code for the shell."""
        self.endings.heed_signals()
        alone = "tmux" if os.environ.get("TMUX") else "setsid"
        try:
            self.state.record(
                host=os.uname().nodename,
                boot_id=boot_id(),
                supervisor_pid=os.getpid(),
                supervisor_started=start_time(os.getpid()),
                launched="slurm" if self.asked.by_slurm else alone,
            )
            # A stop from before had nobody to signal.
            self.endings.look_around()
            self.supervise()
            return 0 if self.state.known.state == "finished" else 1
        except Superseded:
            if self.process is not None:
                self.process.kill()
            return 0
        except Exception as error:
            reason = f"the supervisor failed: {error}"
            if self.process is not None:
                self.process.end_all()
            self.state.record_end(Outcome("failed", reason, "supervisor"))
            raise
        finally:
            tell_its_address(self.state, self.asked)
            if self.asked.by_slurm and self.leads:
                submit_others(self.directory)

    def supervise(self) -> None:
        self.state.disk.keep_spare()
        if self.asked.queue and not self.wait_for_gpus():
            reason = f"{self.endings.who_stopped()} while it waited"
            return self.state.record_end(Outcome("stopped", reason, "stopped"))
        self.endings.start_clock()
        self.group = self.make_group()
        while not self.run_once(self.restarts_left):
            self.wait_to_restart()
            if self.endings.stop.is_set():
                self.conclude(self.endings.outcome(), self.restarts_left, exit_code=None)
                break
        if self.group is not None:
            self.group.end_members()

    @property
    def restarts_left(self) -> bool:
        return restarts_left(self.state.known, self.asked) > 0

    def wait_for_gpus(self) -> bool:
        """Its place in the queue is the time since when it is queued. False where it was
        stopped."""

        def tell(reason: str) -> None:
            self.endings.look_around()
            if self.state.known.waiting != reason:
                self.state.tell(waiting=reason)

        def take(uuids: Texts, indices: Texts) -> None:
            self.asked = self.asked._replace(gpus=uuids, gpu_names=indices, queue=False)
            save(self.asked, self.directory)
            self.state.record(waiting="")

        waiting = Waiting(self.directory, self.endings.stop, tell, take)
        return waiting.wait(self.asked.wanted_gpus)

    def make_group(self) -> Optional[Group]:
        """Where the training runs on several hosts."""
        if self.asked.nodes.count < 2:
            return None
        home = self.asked.home or self.directory
        if self.leads:
            return First(home, self.asked, self.state.token)
        return Member(home, self.asked)

    def come_together(self, group: Group) -> bool:
        """With the other hosts. False where that failed, which is recorded then."""
        try:
            group.join(self.endings.asked_to_stop)
        except NotTogether as problem:
            group.close()
            self.end(problem.report.outcome, exit_code=None)
            return False
        self.asked = self.asked._replace(variables=group.variables)
        if self.state.known.restarts:
            # The first host's checkpoints have come by now.
            self.asked = resumed(group.home, self.asked)
        self.state.tell(nodes=tuple(group.names))
        return True

    def run_once(self, again: bool) -> bool:
        """Start it and wait. True where that was the end, which is recorded then; False where
        another attempt is to follow."""
        attempt = len(self.state.known.attempts) + 1
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
            self.state.tell(
                state="running", pid=process.pid, pid_started=process.started, started=started
            )
            self.sampler = self.sampler or Sampler(self.directory, self.asked.gpus)
            process.wait(self.must_end, lambda: self.before_end(process))
            ended = self.look_at(process)
            outcome, code = tell_outcome(ended), ended.code
            restart = again and may_restart(ended, outcome)
        if self.group is not None:
            outcome, restart = self.agree(self.group, process, outcome, again, restart)
        if not restart:
            self.conclude(outcome, again, exit_code=code, started=started)
            return True
        attempts = past_attempts(self.state.after(outcome, exit_code=code))
        self.state.tell(attempts=attempts, restarts=self.state.known.restarts + 1)
        return False

    def must_end(self) -> bool:
        return self.endings.due(self.sampler) or bool(self.group and self.group.ending)

    def before_end(self, process: Process) -> None:
        self.state.tell(stopping=time.time())
        if self.group is not None:
            if self.group.ending is None:
                self.group.tell(Report(*self.endings.outcome()))
            process.patience_s = self.group.patience_s or process.patience_s

    def look_at(self, process: Process) -> Ended:
        interrupted = process.was_interrupted()
        stopped, scheduled = self.endings.who_stopped(), self.endings.why_scheduled()
        if not stopped and process.told and self.group is not None and self.group.ending:
            scheduled = self.group.ending.outcome
        return Ended(
            process.code,
            is_trainer=self.asked.is_trainer and self.leads,
            has_summary=os.path.exists(os.path.join(self.directory, "summary.json")),
            tail=process.log_tail(),
            mount=mount_of(self.directory),
            stopped=stopped,
            scheduled=scheduled,
            disk_problem=self.endings.disk_problem,
            interrupted=interrupted,
            kernel_killed=process.kernel_killed(),
            step=read_step(self.directory),
        )

    def agree(
        self, group: Group, process: Process, outcome: Outcome, again: bool, restart: bool
    ) -> Tuple[Outcome, bool]:
        """With the other hosts: how all of it has ended, and whether all start again."""
        told = bool(process.told or ECHO.search(process.log_tail()))
        echo = told and not self.endings.disk_problem
        own = Report(*outcome, again=restart, echo=echo)
        verdict = group.agree(own, again, self.endings.asked_to_stop)
        group.close()
        group.begin()
        return verdict.outcome, verdict.again

    def wait_to_restart(self) -> None:
        """The next attempt goes on from the newest checkpoint where there is one."""
        self.asked = resumed(self.directory, self.asked)
        tell_restart(self.directory, self.state.known, self.asked)
        self.endings.stop.wait(min(60.0, RESTART_S * self.state.known.restarts))

    def conclude(self, outcome: Outcome, again: bool, **more: Any) -> None:
        """The run's end; or, where Slurm has ended it and it may go on, another job's beginning."""
        if again and outcome.cause in AGAIN and self.asked.by_slurm and self.leads:
            self.submit_next(self.state.after(outcome, **more))
        else:
            self.end(outcome, **more)

    def end(self, outcome: Outcome, **more: Any) -> None:
        self.wind_up()
        self.state.record_end(outcome, **more)

    def wind_up(self) -> None:
        self.state.disk.free_spare()
        if self.sampler is not None:
            self.sampler.end()

    def submit_next(self, ended: RunDetail) -> None:
        """The next attempt is a job of its own, behind this one. Where nodes may not submit, the
        next `status` does."""
        self.wind_up()
        self.state.raise_if_superseded()
        asked = after_job(self.asked)
        self.state.known = next_attempt(self.directory, ended, asked)
        token = self.state.known.token
        words = program.command(sys.argv[0], "supervise", self.directory, token)
        try:
            slurm.start(Job(self.directory, words, asked, token))
        except (Refusal, OSError) as problem:
            sys.stderr.write(f"the next attempt was not submitted here: {problem}\n")
