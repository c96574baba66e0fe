"""Who makes the login: the system's ssh, or paramiko where there is none."""

from __future__ import annotations

import shutil

from remote.errors import UsageError
from remote.ssh.connection import Connection
from remote.ssh.target import Target


def connect(target: Target) -> Connection:
    """Raises UsageError where a missing ssh is asked for."""
    if target.program != "paramiko" and shutil.which("ssh"):
        from remote.ssh.openssh import OpenSSH

        return OpenSSH(target)
    if target.program == "openssh":
        text = "remote.ssh is openssh, and there is no ssh program here"
        raise UsageError(text, host=target.spec, remedy="install the OpenSSH client")
    from remote.ssh.fallback import Paramiko

    return Paramiko(target)
