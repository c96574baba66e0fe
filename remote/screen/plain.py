"""A line as it is, for what has no colours: loads nothing."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
