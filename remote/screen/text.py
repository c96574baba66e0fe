"""Text that came from a server, made fit for a terminal."""

from __future__ import annotations

import unicodedata

from remote.agent.shared.text import one_line, printable

__all__ = ["one_line", "pad", "printable", "width"]


def width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def pad(text: str, columns: int) -> str:
    return text + " " * max(0, columns - width(text))
