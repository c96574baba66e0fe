"""`attach`: into a run's own tmux by the system's ssh, as a person would; detaching leaves it
running."""

from __future__ import annotations

import shutil
import sys

from remote.errors import UsageError
from remote.link.answers import Attach
from remote.link.session import Session
from remote.ssh.openssh import OpenSSH

LEAVING = {
    True: "Ctrl-b d leaves the training running and comes back here",
    False: "a shell beside the training, on its node; exit leaves the training running",
}


def attach(session: Session, run: str) -> int:
    """Returns ssh's exit code. Raises RunFailed for a run that has ended or that nothing leads
    into."""
    if shutil.which("ssh") is None:
        raise UsageError(
            "attach needs the ssh program, which is not installed here",
            step="attach",
            remedy="logs --follow needs none",
        )
    there = session.ask(Attach, run=run)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("attach needs a terminal here", remedy="logs --follow needs none")
    session.display.note(LEAVING[there.launched == "tmux"])
    session.close()
    with OpenSSH(session.target) as way:
        return way.on_terminal(there.line)
