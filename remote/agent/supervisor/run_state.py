"""state.json of a run while its supervisor lives: only the newest attempt's may write it, and no
full disk ends a training."""

import contextlib
import os
import time
from typing import Any

from remote.agent.root.run_json import load, save
from remote.agent.shared.run_records import RunDetail
from remote.agent.shared.states import Outcome
from remote.agent.supervisor.disk_guard import DiskGuard

HEARTBEAT_S = 30.0
END_WAIT_S, END_AGAIN_S = 600.0, 5.0


class Superseded(Exception):
    """Another attempt has the run: this one writes nothing any more."""


class RunState:
    def __init__(self, directory: str, token: str) -> None:
        self.directory = directory
        self.token = token
        self.known = load(RunDetail, directory)
        self.disk = DiskGuard(directory)
        self.untold = False
        self.beat = 0.0

    def raise_if_superseded(self) -> None:
        # What can't be read says nothing.
        if load(RunDetail, self.directory).token not in ("", self.token):
            raise Superseded

    def write(self, **changes: Any) -> None:
        self.raise_if_superseded()
        self.known = self.known._replace(**changes)
        save(self.known, self.directory)
        self.untold = False

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

    def tell_alive(self, on_other_hosts: bool) -> None:
        """What could not be written before; and for hosts that can't see this process, that it
        lives."""
        if on_other_hosts and time.monotonic() - self.beat > HEARTBEAT_S:
            self.beat = time.monotonic()
            self.tell(heartbeat=time.time())
        elif self.untold:
            self.tell()

    def after(self, outcome: Outcome, **more: Any) -> RunDetail:
        """What is known once it has ended so."""
        return self.known.ended_as(outcome, time.time())._replace(**more)

    def record_end(self, outcome: Outcome, **more: Any) -> None:
        """Nobody else will tell it: a disk that takes nothing is waited for, for a while."""
        self.known = self.after(outcome, **more)
        late = time.monotonic() + END_WAIT_S
        while os.path.isdir(self.directory) and time.monotonic() < late:
            with contextlib.suppress(OSError):
                return self.record()
            time.sleep(END_AGAIN_S)
        self.record()
