"""The one face of all launchers, and what a launch leaves behind."""

import os
from typing import List, NamedTuple, Optional, Protocol, Tuple

from remote.agent.shared.run_records import Asked, RunDetail
from remote.agent.shared.states import Outcome

Looked = Tuple[RunDetail, Optional[Outcome]]


class Job(NamedTuple):
    """What is to be started: the supervisor of one attempt. `token` names the attempt."""

    directory: str
    command: List[str]
    asked: Asked
    token: str


class Launched(NamedTuple):
    """`job`: Slurm's number. `note`: what a person should know about it."""

    launched: str
    note: Optional[str] = None
    job: Optional[str] = None


class Launcher(Protocol):
    def start(self, job: Job) -> Launched:
        """Start the supervisor so that it outlives this login; the same again for a token that was
        started. Raises Refusal where it can't be had."""

    def look(self, directory: str, state: RunDetail, asked: Asked) -> Looked:
        """A recorded state that is not final, corrected by what can be seen now; and how it has
        ended, where its supervisor will tell no more."""

    def stop(self, directory: str, state: RunDetail) -> None:
        """Ask the supervisor to end; who wants it stands in stop.json already."""

    def attach(self, directory: str, state: RunDetail) -> str:
        """A line for the login shell that leads into the run. Raises Refusal where none does."""


def mark_path(directory: str, token: str, what: str = "") -> str:
    """Of an attempt: a file whose being there says that something was done, by whomever."""
    folder = os.path.join(directory, ".attempts")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return os.path.join(folder, token + what)


def claim(path: str) -> bool:
    """Make the file; False where somebody has done so. Not a lock: this holds on file systems that
    hosts share, where a lock may be each host's own or not exist."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True
