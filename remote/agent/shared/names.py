"""Names that both ends derive alike. Imports on every system."""

import hashlib
import os
import re


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
