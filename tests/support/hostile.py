"""A server that lies: a channel that answers the laptop's requests with whatever frames a test
wants.

    with hostile(lambda op, args: [({"result": {...}}, b"")]):
        done = lab.task("status")
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from remote import errors
from remote.agent.shared import protocol
from remote.errors import ConnectionLost
from remote.link import session
from remote.link.link import Link
from remote.ssh.target import Host, Target
from tests.support.faults import Done, Lab, short_pauses
from tests.support.project import snapshot

Frames = Sequence[tuple[dict[str, Any], bytes] | bytes]
"""Messages with their bytes (the request's number is added), or raw bytes."""
Answer = Callable[[str, dict[str, Any]], Frames]
MOST_SENT = 256 << 20
CODES = {0, 130, *(cls.exit_code for cls in errors.RemoteError.__subclasses__())}


class LyingChannel:
    """The agent's end of a channel. Raw bytes may come from an endless generator: what is read is
    counted in `sent`."""

    def __init__(self, command: str, answer: Answer) -> None:
        self.answer = answer
        self.incoming = bytearray()
        nonce = re.search(r"agent-[0-9a-f]{16}", command)
        self.outgoing: list[Any] = [f"\n{nonce[0] if nonce else ''}\n".encode()]
        self.sent = 0

    def send(self, data: bytes | memoryview) -> None:
        self.incoming += data
        while len(self.incoming) >= protocol.HEADER.size:
            lengths = protocol.HEADER.unpack(self.incoming[: protocol.HEADER.size])
            if len(self.incoming) < protocol.HEADER.size + sum(lengths):
                return
            body = bytes(self.incoming[protocol.HEADER.size : protocol.HEADER.size + lengths[0]])
            del self.incoming[: protocol.HEADER.size + sum(lengths)]
            message = protocol.decode_json(body)
            if "op" in message:
                for item in self.answer(message["op"], message.get("args") or {}):
                    self.outgoing.append(
                        item
                        if isinstance(item, bytes)
                        else encode({"id": message["id"], **item[0]}, item[1])
                    )

    def receive(self, limit: int, timeout_s: float | None = None) -> bytes:
        if not self.outgoing:
            raise ConnectionLost("no answer for 1 s")
        data: bytes = self.outgoing.pop(0)
        if len(data) > limit:
            self.outgoing.insert(0, data[limit:])
            data = data[:limit]
        self.sent += len(data)
        assert self.sent < MOST_SENT, "the laptop reads without end"
        return data

    def errors(self) -> bytes:
        return b""

    def exit_code(self) -> int | None:
        return None

    def close(self) -> None:
        self.outgoing.clear()


class LyingConnection:
    """Stands in for remote.ssh.connection.Connection."""

    def __init__(self, target: Target, answer: Answer) -> None:
        self.target = target
        self.host = Host("box")
        self.method = ""
        self.shared = False
        self.answer = answer

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def start(self, command: str, beside: bool = False) -> LyingChannel:
        return LyingChannel(command, self.answer)


def encode(message: dict[str, Any], blob: bytes = b"") -> bytes:
    return protocol.encode(message, len(blob)) + blob


@contextlib.contextmanager
def hostile(answer: Answer) -> Iterator[None]:
    """Every session within the block talks to the liar."""
    honest = vars(session)["connect"]
    setattr(session, "connect", lambda target: LyingConnection(target, answer))  # noqa: B010  it has another's type
    try:
        yield
    finally:
        setattr(session, "connect", honest)  # noqa: B010


@contextlib.contextmanager
def recording(into: dict[str, list[tuple[dict[str, Any], bytes]]]) -> Iterator[None]:
    """Keep what an honest agent answers: op → its frames, the newest request's."""
    receive, send = Link._receive, Link._send
    current = [""]

    def sending(self: Link, message: dict[str, Any], blob: bytes = b"") -> None:
        if "op" in message:
            current[0] = message["op"]
            into[current[0]] = []
        send(self, message, blob)

    def receiving(self: Link) -> tuple[dict[str, Any], bytes]:
        message, blob = receive(self)
        into[current[0]].append(
            ({key: value for key, value in message.items() if key != "id"}, blob)
        )
        return message, blob

    Link._send, Link._receive = sending, receiving  # type: ignore[method-assign]
    try:
        yield
    finally:
        Link._send, Link._receive = send, receive  # type: ignore[method-assign]


ODD: tuple[Any, ...] = (
    None,
    [],
    {},
    "\x1b]0;x\x07\x1b[2J../..",
    -1,
    True,
    1e308,
    [[["x"]]],
    {"a": {"b": []}},
    [None],
    10**30,
)


def mutations(value: Any, depth: int = 4) -> Iterator[Any]:
    """`value` with one part of it replaced by something odd, or left out: every part, every odd
    thing."""
    yield from (odd for odd in ODD if type(odd) is not type(value) or odd != value)
    if depth and isinstance(value, dict):
        for key in value:
            yield {name: part for name, part in value.items() if name != key}
            for part in mutations(value[key], depth - 1):
                yield {**value, key: part}
    elif depth and isinstance(value, list) and value:
        for part in mutations(value[0], depth - 1):
            yield [part, *value[1:]]


class LyingLab(Lab):
    """A lab whose server lies; nothing may be written outside `results/`, and nothing drawn on the
    terminal."""

    def __init__(self, directory: Path) -> None:
        super().__init__(None, directory)  # type: ignore[arg-type]
        self.before = self.outside()

    @property
    def route(self) -> Any:
        class Nowhere:
            ssh_config = "/dev/null"

        return Nowhere

    def outside(self) -> dict[str, str]:
        return {
            name: what
            for name, what in snapshot(self.directory).items()
            if not name.startswith(f"{self.name}/results/")
        }

    def ask(
        self, task: str, answer: Callable[[str, dict[str, Any]], Frames], /, **options: Any
    ) -> Done:
        with hostile(answer), short_pauses(0):
            done = self.task(task, **options)
        told = done.out + done.err
        assert done.code in CODES, done
        assert (
            "Traceback" not in told
            and "\x1b" not in told
            and "\x07" not in told
            and "\x9b" not in told
        )
        if done.code:
            problems = [line for line in done.out.splitlines() if line.startswith("  problem")]
            assert problems if task == "doctor" else len(done.error_lines) == 1, done
            assert all(len(line) < 3000 for line in [*done.error_lines, *problems])
        assert self.outside() == self.before
        return done
