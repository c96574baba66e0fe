"""What an ssh process says about itself: in a file of its own (`ssh -E`), apart from what the
server says."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

GAVE_UP = re.compile(
    r"^(Connection (to |closed|reset)|client_loop:|Timeout, server|ssh_|Control master"
    r"|unix_listener: cannot)",
    re.M,
)
"""ssh's lines about a broken connection; a command's own 255 leaves none of them."""


class SshLog:
    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(prefix="ssh-", suffix=".log")
        os.close(handle)
        self.path = Path(name)

    def said(self) -> str:
        """Without its steps."""
        return without_steps(self._all())

    @property
    def gave_up(self) -> bool:
        return GAVE_UP.search(self.said()) is not None

    @property
    def method(self) -> str:
        """How this process logged in; "" before that, or over a login that was kept."""
        found = re.search(r'(?m)^Authenticated to .* using "([^"]+)"', self.said())
        return found[1] if found else ""

    @property
    def keys(self) -> list[str]:
        """The fingerprints of the keys that the server takes, where ssh tells them (`-v`)."""
        return re.findall(r"(?m)^debug1: Server accepts key: .* (SHA256:\S+)", self._all())

    def _all(self) -> str:
        try:
            return self.path.read_text("utf-8", "replace")
        except OSError:
            return ""

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def without_steps(said: str) -> str:
    """Of what `ssh -v` says, ours or a jump host's, what it says without -v."""
    return re.sub(r"(?m)^(debug\d: |OpenSSH_\d).*\n?", "", said)
