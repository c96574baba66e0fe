"""What an operation of the agent sees: the call it serves, and the way to refuse it."""

from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Tuple

from remote.agent.root.paths import Layout

Operation = Callable[..., Dict[str, Any]]
OPERATIONS: Dict[str, Operation] = {}


class Refusal(Exception):
    """An expected failure. `kind` names a class of remote/errors.py; the laptop shows message and
    remedy in one line."""

    def __init__(
        self, kind: str, message: str, remedy: Optional[str] = None, **details: Any
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.remedy = remedy
        self.details = details


class Owner(NamedTuple):
    """Whose root it must be; asked of what writes there, or ends or takes a run."""

    project: str
    identity: Optional[str]


class Call:
    """One request being served, about the root `layout`. Operations write to the laptop through
    `event` alone; stdout is the protocol's."""

    layout: Layout
    owner: Owner

    def event(self, blob: bytes = b"", **fields: Any) -> None:
        """Send an intermediate message; raises BrokenPipeError when the laptop is gone."""
        raise NotImplementedError

    def blobs(self) -> Iterator[Tuple[Dict[str, Any], bytes]]:
        """What the laptop uploads with this call, until its end mark. Raises EOFError if the laptop
        is gone before it."""
        raise NotImplementedError

    def alive(self) -> bool:
        """False once the laptop is gone."""
        raise NotImplementedError


def operation(
    name: str, takes: Optional[Callable[..., Any]] = None
) -> Callable[[Operation], Operation]:
    """Register `function(call, **args) -> result` under a name; with `takes`, a record's class,
    `function(call, record)`: the arguments are its fields."""

    def register(function: Operation) -> Operation:
        OPERATIONS[name] = function
        if takes is not None:
            OPERATIONS[name] = lambda call, **args: function(call, takes(**args))
        return function

    return register
