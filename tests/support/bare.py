"""`python -m tests.support.bare COMMAND…` runs a command as on a machine without OpenSSH, tmux and
rsync: PATH is one folder of links to all other commands of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

HIDDEN = ("ssh", "sshd", "scp", "sftp", "tmux", "rsync")


def is_hidden(name: str) -> bool:
    return name in HIDDEN or name.startswith("ssh-")


def link_commands(directory: str) -> None:
    """The first of a name counts, as on PATH."""
    for place in os.environ["PATH"].split(os.pathsep):
        for name in os.listdir(place) if os.path.isdir(place) else ():
            link = os.path.join(directory, name)
            if not is_hidden(name) and not os.path.lexists(link):
                os.symlink(os.path.join(place, name), link)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bare-") as directory:
        link_commands(directory)
        environment = {**os.environ, "PATH": directory, "TEST_SSH_SERVER": "embedded"}
        return subprocess.call(sys.argv[1:], env=environment)


if __name__ == "__main__":
    sys.exit(main())
