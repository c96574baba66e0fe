"""A line as it is, for what has no colours: loads nothing."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def say(text: str) -> None:
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        leave_pipe()


def open_closed_streams() -> None:
    """What was closed (`>&-`) is none in Python, and the next file that is opened would get its
    number. Nothing can be read from what takes its place, nor written to it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY if number == 0 else os.O_RDONLY), number)
            setattr(sys, name, open(number, "r" if number == 0 else "w"))


def leave_pipe(stream: TextIO | None = None) -> None:
    """Whoever read our output has gone (`| head`), or it can't be written; Python must not complain
    about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())
