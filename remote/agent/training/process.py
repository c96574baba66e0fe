"""The training itself: a command in a terminal of its own, and its end."""

import os
import signal
import subprocess
import time
from typing import Callable, Optional

from remote.agent.machine.processes import (
    child_start_time,
    children_of,
    group_members,
    kernel_kills,
    reads_pipe,
)
from remote.agent.root.paths import read_end
from remote.agent.run_files.records import read_shown
from remote.agent.shared.run_records import Asked
from remote.agent.training import terminal
from remote.agent.training.surroundings import run_environment

STOP_S = 60.0
"""From SIGTERM to SIGKILL: the time a trainer has to save."""
TAIL = 64 << 10


class Process:
    """One attempt. `code` is known after `wait`: the exit code, negative for a signal; `told`:
    whether it was asked to end.

    `home`: the run's own directory; of a host that shares it with the first one, `directory` is a
    folder of it, for its log."""

    def __init__(self, directory: str, asked: Asked, attempt: int) -> None:
        self.directory = directory
        self.home = asked.home or directory
        self.asked = asked
        self.attempt = attempt
        self.child: Optional[subprocess.Popen[bytes]] = None
        self.code = 0
        self.kills = kernel_kills()
        self.log = os.path.join(directory, "train.log")
        self.log_from = os.path.getsize(self.log) if os.path.exists(self.log) else 0
        self.terminal = 0
        self.told = False
        # From SIGTERM to SIGKILL.
        self.patience_s = asked.stop_s or STOP_S

    def start(self) -> Optional[str]:
        """Returns why it could not be started."""
        own, programs = terminal.open_terminal()
        self.terminal = terminal.fork(self.directory, own)
        os.close(own)
        try:
            self.child = subprocess.Popen(
                self.asked.argv,
                cwd=os.path.join(self.home, "work"),
                env=run_environment(self.home, self.asked, self.attempt),
                stdin=programs,
                stdout=programs,
                stderr=programs,
                start_new_session=True,
                preexec_fn=terminal.attach_program,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            problem = f"the command could not be started: {error}"
            os.write(programs, f"{problem}\n".encode("utf-8", "replace"))
            return problem
        finally:
            os.close(programs)
            if self.child is None:
                terminal.wait(self.terminal)
        return None

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    @property
    def started(self) -> Optional[int]:
        """By the kernel's own clock: with the pid it names this process and no other."""
        return child_start_time(self.pid)

    def wait(self, must_end: Callable[[], bool], ending: Callable[[], None]) -> None:
        """Until it ends, by itself or asked to once `must_end` says so; `ending` is called
        before."""
        assert self.child is not None
        while True:
            try:
                self.code = self.child.wait(0.25)
                break
            except subprocess.TimeoutExpired:
                if must_end():
                    ending()
                    self.end()
                    break
        self.kill_rest()

    def end(self) -> None:
        """SIGTERM goes to the trainer alone: its loader workers must live until it has saved."""
        assert self.child is not None
        self.told = True
        self.terminate()
        try:
            self.code = self.child.wait(self.patience_s)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.code = self.child.wait()

    def terminate(self) -> None:
        """Where a shell runs it, the shell and what it has started. What reads from a pipe ends by
        itself."""
        assert self.child is not None
        self.child.terminate()
        if self.asked.argv[0] == "bash":
            for pid in children_of(self.child.pid):
                if not reads_pipe(pid):
                    os.kill(pid, signal.SIGTERM)

    def end_all(self) -> None:
        """As for a stop: it may save, and nothing of it goes on."""
        if self.child is not None:
            self.end()
            self.kill_rest()

    def kill(self) -> None:
        """At once, with all that it has started."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.kill_rest()

    def kill_rest(self) -> None:
        for _ in range(20):
            members = [pid for pid in group_members(self.pid) if pid != os.getpid()]
            if not members:
                return
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            time.sleep(0.05)

    def was_interrupted(self) -> bool:
        """By Ctrl-C in its terminal. Waits for what the terminal has still to write."""
        if not terminal.wait(self.terminal):
            return False
        return read_shown(self.directory).get("interrupted") is True

    def kernel_killed(self) -> bool:
        kills = kernel_kills()
        return self.kills is not None and kills is not None and kills > self.kills

    def log_tail(self) -> str:
        """What an attempt before has written is not this one's."""
        return read_end(self.log, TAIL, self.log_from)
