"""Starts the agent on a connection and calls it: framed JSON and bytes over one channel."""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from remote.agent.shared import protocol
from remote.errors import BY_KIND, ConnectionLost, ProtocolError, RemoteError, ServerUnfit
from remote.link.agent_program import (
    BROKEN_PYTHON,
    INPUT_READ,
    NO_PYTHON,
    OLD_PYTHON,
    agent_hash,
    agent_program,
    start_command,
)
from remote.link.answer import A, read_answer
from remote.screen.text import one_line
from remote.ssh.connection import NEVER_HEARD
from remote.ssh.said import refused_login

if TYPE_CHECKING:
    from remote.ssh.connection import Channel, Connection

PING_EVERY_S = 10.0
log = logging.getLogger("remote.link")
ANSWERED, ENDED = "%s: %s answered after %.3f s", "%s: %s ended after %.3f s with %s"
IDLE_S = 60.0
"""An agent that hears nothing for so long ends, and frees its locks."""
MAX_NOISE = 256 << 10
"""Bytes that a login shell may print before the agent speaks."""
MAX_ANSWER = 16 << 20
MAX_PARTS = 1_000_000
"""Of one answer's JSON: its bytes, and its commas and brackets, each of which may cost 60 bytes of
memory here."""
QUICK = (
    "facts",
    "runs",
    "fetch_manifest",
    "run_start",
    "run_join",
    "network_addresses",
    "network_listen",
    "network_connect",
    "network_close",
    "run_stop",
)
"""Requests that are answered from a few files: an agent that lives but never answers them is given
up after QUICK_WAITS timeouts."""
QUICK_WAITS = 10
FAILED = 94
"""Our program's own, for what it did not expect."""
CLOSED = 254
"""sshd's own, where /etc/nologin keeps everybody out."""
EXPIRED = re.compile("password has expired|password change required", re.I)
NOT_STARTED = {
    NO_PYTHON: (
        "no python3 was found on the server",
        "install one (apt install python3, or miniconda), or set remote.python in fabric.yaml to"
        " its path",
    ),
    OLD_PYTHON: (
        "every python3 found on the server is older than 3.8",
        "install a newer one (miniconda needs no root), or set remote.python in fabric.yaml to its"
        " path",
    ),
    BROKEN_PYTHON: (
        "no python3 found on the server runs",
        "mend it there, or set remote.python in fabric.yaml to the path of one that runs",
    ),
    INPUT_READ: (
        "something on the server has read what was meant for our program: its shell's start files,"
        " most likely",
        "look at ~/.bashrc and ~/.profile there; for commands they must read no input (`read`,"
        " `ssh-add`)",
    ),
}
"""By the exit code of our command: what is wrong, and what to do."""
NOISY = "look at ~/.bashrc and ~/.profile on the server; they must be quiet for commands"
SHELL = (
    "a menu, a forced command or a restricted shell stands behind this login, or ~/.bashrc there"
    " starts another program or ends: it must let commands through"
)
POD = (
    "this proxy runs no commands: use the direct address (IP and TCP port) that the provider shows"
    " for the machine"
)

OnEvent = Callable[[dict[str, Any], bytes], None]
Upload = Callable[[dict[str, Any]], Iterable[tuple[dict[str, Any], bytes]]]
"""Takes the agent's word that it is ready, which says what it lacks; makes the frames."""


class Link:
    """The agent on one connection. `with` starts and ends it. `requests` counts the calls, the cost
    on a slow link.

    `new_there`: the server is not known to keep this agent, so that it is sent without being asked
    for. `beside`: one more over the login that stands, or none.
    """

    def __init__(
        self,
        connection: Connection,
        root: str,
        python: str = "",
        new_there: bool = False,
        beside: bool = False,
    ) -> None:
        self.connection = connection
        self.root = root
        self.python = python
        self.beside = beside
        self.requests = 0
        self._buffer = bytearray()
        self._deadline: float | None = None
        self._channel: Channel | None = None
        self._closed = threading.Event()
        self._greeted = False
        # A message of the agent's has come.
        self.heard = False
        self._send_program = new_there
        self._nonce = f"agent-{secrets.token_hex(8)}"

    @property
    def host(self) -> str:
        return self.connection.host.name

    def __enter__(self) -> Link:
        self._channel = self.connection.start(start_command(self._nonce, self.python), self.beside)
        hello = {"root": self.root, "agent": agent_hash(), "idle_s": IDLE_S}
        self._send(hello)
        if self._send_program:
            self._send({"agent": True}, zlib.compress(agent_program()))
        threading.Thread(target=self._ping, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._channel is not None:
            self._channel.close()

    def wait_until_let_in(self) -> None:
        """Until a python runs there. Raises what `call` does."""
        self._deadline = time.monotonic() + self._quickly_s
        if not self._greeted:
            self._greet()

    @property
    def _quickly_s(self) -> float:
        return QUICK_WAITS * self.connection.target.timeout_s

    def ask(
        self,
        kind: type[A],
        on_event: OnEvent | None = None,
        upload: Upload | None = None,
        eager: bool = False,
        **args: Any,
    ) -> A:
        """`call` of the operation that answers with this record."""
        result = self.call(kind.OP, on_event, upload, eager, **args)
        try:
            return read_answer(kind, result)
        except ProtocolError as error:
            error.host = self.host
            raise

    def call(
        self,
        op: str,
        on_event: OnEvent | None = None,
        upload: Upload | None = None,
        eager: bool = False,
        **args: Any,
    ) -> dict[str, Any]:
        """One request, one round trip. `upload` starts when the agent says that it is ready;
        `eager`: at once, for little.

        Raises what the agent refuses with, as a class of remote.errors; ConnectionLost when it goes
        silent.
        """
        self.requests += 1
        number = self.requests
        self._deadline = time.monotonic() + self._quickly_s if op in QUICK else None
        began = time.monotonic()
        self._send({"id": number, "op": op, "args": args})
        try:
            if eager and upload is not None:
                self._upload(number, upload({}))
                upload = None
            result = self._hear_result(number, op, on_event, upload)
        except RemoteError as error:
            # Neither arguments nor answers: they may hold a webhook's address.
            log.debug(ENDED, self.host, op, time.monotonic() - began, type(error).__name__)
            error.host = error.host or self.host
            raise
        log.debug(ANSWERED, self.host, op, time.monotonic() - began)
        return result

    def _hear_result(
        self, number: int, op: str, on_event: OnEvent | None, upload: Upload | None
    ) -> dict[str, Any]:
        while True:
            message, blob = self._receive()
            if message.get("id") != number:
                continue
            if "result" in message:
                return _dict(message["result"])
            if "error" in message:
                self._refuse(op, _dict(message["error"]))
            event = _dict(message.get("event"))
            if event.get("ready") is True:
                if upload is not None:
                    self._upload(number, upload(event))
            elif on_event is not None:
                on_event(event, blob)

    def _upload(self, number: int, frames: Iterable[tuple[dict[str, Any], bytes]]) -> None:
        for header, blob in frames:
            self._send({"id": number, "data": header}, blob)
        self._send({"id": number, "end": True})

    def _refuse(self, op: str, error: dict[str, Any]) -> NoReturn:
        kind = str(error.get("kind"))
        message = str(error.get("message"))
        if kind == "bug":
            raise ProtocolError(
                f"the agent failed in {op!r}: {last_words(message)}",
                host=self.host,
                remedy="please report this",
            )
        refused = BY_KIND.get(kind, ProtocolError)(one_line(message, 2000), host=self.host)
        if remedy := error.get("remedy"):
            refused.remedy = one_line(str(remedy), 1000)
        details = error.get("details")
        refused.details = details if isinstance(details, dict) else {}
        raise refused

    # -- frames

    def _send(self, message: dict[str, Any], blob: bytes = b"") -> None:
        assert self._channel is not None
        try:
            self._channel.send(protocol.encode(message, len(blob)) + blob)
        except ConnectionLost:
            # A command that ended at once takes nothing more: what it said before is the reason,
            # not the connection.
            if self._greeted or self._channel.exit_code() is None:
                raise
            self._hear_out()
            raise self._ended() from None

    def _hear_out(self) -> None:
        try:
            while len(self._buffer) < MAX_NOISE:
                self._fill()
        except (EOFError, RemoteError):
            pass

    def _ping(self) -> None:
        while not self._closed.wait(PING_EVERY_S):
            try:
                self._send({"ping": True})
            except (RemoteError, OSError):
                return

    def _receive(self) -> protocol.Frame:
        if not self._greeted:
            self._greet()
        while True:
            try:
                message, blob = protocol.read_frame(
                    self._read_exactly, MAX_ANSWER, max_parts=MAX_PARTS
                )
            except protocol.BadFrame as error:
                raise ProtocolError(
                    f"the server sent what is no message of ours ({error})", host=self.host
                ) from None
            except EOFError:
                raise self._ended() from None
            except ConnectionLost as error:
                if error.silent and not self.heard:
                    error.remedy = NEVER_HEARD
                raise
            self.heard = True
            if "need" in message:
                if not self._send_program:
                    self._send({"agent": True}, zlib.compress(agent_program()))
            elif "alive" not in message:
                return message, blob

    def _greet(self) -> None:
        """Skip what the login shell prints, up to the agent's mark."""
        mark = f"\n{self._nonce}\n".encode()
        while mark not in self._buffer:
            if len(self._buffer) > MAX_NOISE:
                problem = "the login shell prints without end before our program starts"
                raise ProtocolError(problem, host=self.host, remedy=NOISY)
            try:
                self._fill()
            except EOFError:
                raise self._ended() from None
            except ConnectionLost:
                said = self._last_said(bytes(self._buffer))
                if not said:
                    raise
                problem = f"the login shell does not start our program; it says: {said}"
                raise ServerUnfit(problem, host=self.host, remedy=SHELL) from None
        before = self._buffer.index(mark)
        del self._buffer[: before + len(mark)]
        self._greeted = True
        log.debug("%s: the agent speaks; %d bytes of the login shell before it", self.host, before)

    def _read_exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        data = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return data

    def _fill(self) -> None:
        assert self._channel is not None
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise ConnectionLost("the server lives but gives no answer", host=self.host)
        data = self._channel.receive(1 << 20)
        if not data:
            raise EOFError
        self._buffer += data

    def _ended(self) -> RemoteError:
        assert self._channel is not None
        code = self._channel.exit_code()
        errors = self._channel.errors()
        said = self._last_said(errors or bytes(self._buffer))
        words = f": {said}" if said else ""
        log.debug("%s: our program's exit code is %s%s", self.host, code, words)
        if code in NOT_STARTED:
            problem, remedy = NOT_STARTED[code]
            if code == BROKEN_PYTHON:
                last = errors.strip().split(b"\n")[-1]
                problem += f": {self._last_said(last)}"
            return ServerUnfit(problem, host=self.host, remedy=remedy)
        if code == CLOSED or EXPIRED.search(said):
            return refused_login(said, self.connection.target)
        if self._greeted and code == FAILED:
            failed = last_words(errors.decode("utf-8", "replace"))
            return ServerUnfit(f"our program failed on the server: {failed}", host=self.host)
        if code is None or self._greeted:
            return ConnectionLost("the connection was lost", host=self.host)
        problem = f"the server did not start our program (exit code {code}{words})"
        return ServerUnfit(problem, host=self.host, remedy=POD if "PTY" in said else SHELL)

    @staticmethod
    def _last_said(said: bytes) -> str:
        return one_line(said.decode("utf-8", "replace").strip()[-300:], 300)


def last_words(trace: str) -> str:
    """Of a traceback from the server: where it happened and what, in one line."""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    where = [f" ({line})" for line in lines if line.startswith("File ")]
    return one_line("".join([*(lines or ["it did not say why"])[-1:], *where[-1:]]), 500)


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError("the server's answer has the wrong form")
    return value
