"""`attach`: into a run's own tmux by the system's ssh, as a person would; detaching leaves it
running."""

from __future__ import annotations

import shutil
import subprocess

from remote.errors import UsageError
from remote.link.answers import Attach
from remote.link.session import Session
from remote.ssh.openssh import as_words, host_words

ATTACHED = {"RemoteCommand": "none", "ClearAllForwardings": "yes", "LogLevel": "ERROR"}
"""What a user's ssh_config may say for logins of their own, and what would end or hang this one."""

LEAVING = {
    True: "Ctrl-b d leaves the training running and comes back here",
    False: "a shell beside the training, on its node; exit leaves the training running",
}


def attach(session: Session, run: str) -> int:
    """Returns ssh's exit code. Raises RunFailed for a run that has ended or that nothing leads
    into."""
    ssh = shutil.which("ssh")
    if ssh is None:
        raise UsageError(
            "attach needs the ssh program, which is not installed here",
            step="attach",
            remedy="logs --follow needs none",
        )
    there = session.ask(Attach, run=run)
    argv = [ssh, "-t", *as_words(ATTACHED), *host_words(session.target), there.line]
    session.display.note(LEAVING[there.launched == "tmux"])
    session.close()
    return subprocess.call(argv)
