"""What every answer of the agent has in common: its operation's name, and the one place where it is
checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

from remote.errors import ProtocolError
from remote.link.decoding import WrongForm, decode


@dataclass(frozen=True)
class Answer:
    """`OP` is the operation's name."""

    OP: ClassVar[str]


class Owned(Answer):
    """Of what writes there, or ends or takes a run: the agent is told whose root it must be."""


A = TypeVar("A", bound=Answer)


def read_answer(kind: type[A], result: object) -> A:
    """Raises ProtocolError that names the part which has the wrong form."""
    try:
        return decode(kind, result)
    except WrongForm as wrong:
        place = f" at {wrong}" if str(wrong) else ""
        raise ProtocolError(
            f"the server's answer to {kind.OP!r} has the wrong form{place}"
        ) from None
