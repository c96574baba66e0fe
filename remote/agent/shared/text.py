"""Text that came from another machine or program, made fit for a terminal and a record. Imports on
every system."""

import re

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]"
)
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


def printable(text: str) -> str:
    """Without escape sequences and control characters; tabs and newlines stay. Lone surrogates
    become `?`."""
    plain = _CONTROL.sub("", _ESCAPE.sub("", text.replace("\r\n", "\n")))
    return plain.encode("utf-8", "replace").decode("utf-8")


def one_line(text: str, limit: int) -> str:
    plain = " ".join(printable(text).split())
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def redact(text: str) -> str:
    """Without the passwords that addresses of indexes may hold."""
    return re.sub(r"(://)[^/\s@'\"]+@", r"\1****@", text)
