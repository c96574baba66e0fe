"""fab as a person runs it: on a terminal, which is read and typed into.

leader, process = fab_on_terminal(project, server, "train")
read_until(leader, b"first line"); os.write(leader, b"\\x03"); assert process.wait(20) == 0
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from remote.loopback import LoopbackServer

SIZE = ("COLUMNS", "LINES")
"""Variables that would stand in for the terminal's own size."""


def fab_on_terminal(
    project: Path,
    server: LoopbackServer,
    *words: str,
    size: tuple[int, int] = (50, 160),
    program: Sequence[str] = (),
    stdout: IO[bytes] | None = None,
) -> tuple[int, subprocess.Popen[bytes]]:
    """Our end of the terminal, and the process. `size`: rows and columns; `program`: in place of
    fab; `stdout`: where it goes instead."""
    leader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    fab_argv = [sys.executable, "-m", "fabric", "-S", str(server.ssh_config), "-H", "loopback"]
    process = subprocess.Popen(
        [*(program or fab_argv), *words],
        cwd=project,
        env={name: value for name, value in os.environ.items() if name not in SIZE}
        | {"TERM": "xterm"},
        stdin=terminal,
        stdout=stdout or terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(terminal)
    return leader, process


def take_terminal() -> None:
    """Make stdin the controlling terminal, so that Ctrl-C reaches the process as it reaches a
    person's.

    Tests that run in the background of a shell ignore SIGINT, and what they start inherits that.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def last_frame(seen: bytes, rows: int = 24) -> list[str]:
    """The newest whole picture of what fills the screen, line by line, without colours."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-GI-Za-z]", "", seen.decode("utf-8", "ignore"))
    frames = [frame.split("\r\n") for frame in plain.split("\x1b[H")]
    return [line.rstrip() for line in [f for f in frames if len(f) == rows][-1]]


def read_frame(leader: int, mark: str, rows: int = 24, timeout_s: float = 30.0) -> list[str]:
    """The first whole picture from now on that shows `mark`."""
    seen, deadline = b"", time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        seen += read_until(leader, b"\x1b[H", max(0.1, deadline - time.monotonic()))
        with contextlib.suppress(IndexError):
            if any(mark in line for line in last_frame(seen, rows)):
                return last_frame(seen, rows)
    raise AssertionError(f"never shown: {mark}; last: {seen[-3000:].decode(errors='replace')}")


def read_until(leader: int, mark: bytes, timeout_s: float = 30.0) -> bytes:
    seen, deadline = b"", time.monotonic() + timeout_s
    while mark not in seen:
        assert time.monotonic() < deadline, seen.decode(errors="replace")
        if select.select([leader], [], [], 0.5)[0]:
            try:
                seen += os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
    return seen
