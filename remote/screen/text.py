"""Text from a server, made fit for a terminal, and figures as people read them. Draws nothing."""

from __future__ import annotations

import re
import textwrap
import time
import unicodedata

from remote.agent.shared.text import one_line, printable
from remote.screen.language import translate

__all__ = ["duration", "moment", "number", "one_line", "percent", "printable", "show", "size"]
UNKNOWN = "–"
COMMAND = r"\b(?:fab|remote-train)(?: -\w \S+)* [a-z][a-z-]+(?: --?[a-z-]+(?: [\w./-]+)?)*"
_WHOLE = re.compile(rf"`[^`]+`|{COMMAND}|\b(?:pip|git|ssh-keygen|python -m) \S.*")
_WIDE = re.compile(r"[\u1100-\u115f\u2e80-\uffef]")
"""Signs of two cells, most of which need no blank to break a line at."""


_program = "fab"


def call_it(program: str) -> None:
    """What was typed in fab's place."""
    global _program
    _program = program


def as_typed(text: str) -> str:
    """What is said of fab, of the program that was typed."""
    return re.sub(r"(?<![\w./~-])fab(?= )", _program, text)


def broken_at_words(text: str, width: int) -> str:
    """In lines of `width` signs. What is typed, stands in a row of its own or is longer stays
    whole, so that it can be copied: the terminal breaks it, if it must."""
    if text.startswith(" ") or len(text) <= width or _WIDE.search(text):
        return text
    held = _WHOLE.sub(lambda found: found[0].replace(" ", "\0"), text)
    lines = [
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
        for line in held.split("\n")
    ]
    return "\n".join(lines).replace("\0", " ")


def number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def show(value: object) -> str:
    return UNKNOWN if value is None or value == "" else one_line(str(value), 200)


def padded(text: str, width: int) -> str:
    """With blanks up to so many cells of a terminal, of which a Chinese character takes two."""
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in text)
    return text.ljust(width - wide)


def percent(fraction: object, digits: int = 2) -> str:
    """0.9123 → 91.23%"""
    value = number(fraction)
    return UNKNOWN if value is None else f"{100 * value:.{digits}f}%"


def duration(seconds: object) -> str:
    """75 → 1 min 15 s"""
    value = number(seconds)
    if value is None or not 0 <= value < 1e9:
        return UNKNOWN
    whole = int(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def brief(seconds: object) -> str | None:
    """4800 → 1h20m, for a column."""
    value = number(seconds)
    if value is None or not 0 <= value < 1e9:
        return None
    minutes, hours, days = int(value // 60), int(value // 3600), int(value // 86400)
    if days:
        return f"{days}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{int(value) % 60:02}s" if minutes else f"{int(value)}s"


def moment(when: object) -> str | None:
    """A server's time by this computer's clock and zone: 14:03 for today, else 26 Nov 14:03."""
    value = number(when)
    if value is None or not 0 < value < 1e11:
        return None
    then, now = time.localtime(value), time.localtime()
    today = then[:3] == now[:3]
    return time.strftime("%H:%M" if today else translate("%d %b %H:%M"), then)


def size(count: object) -> str:
    amount = number(count)
    if amount is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
