"""Names that both ends derive alike. Imports on every system."""

import hashlib
import os
import re

LATE = ("state.json", "supervisor.log", "slurm.log")
"""Our own records that may change for a moment after a run's end; they come with it, and do not
count as its work."""
NODE = re.compile(r"node-\d+\Z")
"""In a run's directory: the log and the records of another host that trains along."""


def is_late(path: str) -> bool:
    """Of a file's path in a run's directory."""
    folder, _, name = path.rpartition("/")
    return name in LATE and (not folder or bool(NODE.match(folder)))


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def socket_name(directory: str) -> str:
    """A tmux server of its own for every run: it has this login's environment, and ending it harms
    no other run."""
    return "run-" + hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]


def session_name(run: str) -> str:
    """tmux takes dots and colons for its own."""
    return "".join(c if (c.isascii() and c.isalnum()) or c in "-_" else "_" for c in run)
