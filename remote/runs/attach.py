"""`attach`: into a run's own tmux by the system's ssh, as a person would; detaching leaves it
running."""

from __future__ import annotations

import shlex
import shutil
import subprocess

from remote.agent.shared.names import session_name, socket_name
from remote.errors import RunFailed, UsageError
from remote.link.session import Session
from remote.runs.listing import list_runs, only_run
from remote.ssh.openssh import as_words, host_words

ATTACHED = {"RemoteCommand": "none", "ClearAllForwardings": "yes", "LogLevel": "ERROR"}
"""What a user's ssh_config may say for logins of their own, and what would end or hang this one."""


def attach(session: Session, run: str) -> int:
    """Returns ssh's exit code. Raises RunFailed for a run that has ended or that tmux does not
    hold."""
    ssh = shutil.which("ssh")
    if ssh is None:
        raise UsageError(
            "attach needs the ssh program, which is not installed here",
            step="attach",
            remedy="logs --follow needs none",
        )
    found = only_run(list_runs(session, run))
    remedy = f"fab -H {session.typed} logs --run {found.run} --follow"
    if found.state != "running" or found.detail.elsewhere:
        raise RunFailed(
            f"{found.run} is {found.state} here: there is nothing to attach to",
            host=session.host,
            remedy=remedy,
        )
    if found.detail.launched != "tmux":
        raise RunFailed(f"{found.run} was started without tmux", host=session.host, remedy=remedy)
    argv = [
        ssh,
        "-t",
        *as_words(ATTACHED),
        *host_words(session.target),
        attach_command(found.path, found.run),
    ]
    session.display.note("Ctrl-b d leaves the training running and comes back here")
    session.close()
    return subprocess.call(argv)


def attach_command(directory: str, run: str) -> str:
    """For the login shell there: one line that every shell takes alike."""
    # tmux refuses a terminal that the server's terminfo does not know (kitty, ghostty, wezterm).
    script = (
        'infocmp "$TERM" >/dev/null 2>&1 || TERM=xterm-256color; export TERM; exec tmux -L "$1"'
        ' attach-session -t "$2"'
    )
    return (
        f"exec sh -c '{script}' sh {socket_name(directory)} {shlex.quote('=' + session_name(run))}"
    )
