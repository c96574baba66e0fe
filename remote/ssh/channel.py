"""One SSH channel with flow control, deadlines and bounded memory. Fed by the transport's thread, used by any other."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from remote.errors import ConnectionLost, ServerUnfit
from remote.screen.text import one_line

if TYPE_CHECKING:
    from remote.ssh.transport import Transport

WINDOW = 24 << 20
"""Bytes the server may send unasked: 480 MB/s at a round trip of 50 ms, and the most that waits here in memory."""
PACKET = 128 << 10
ACKNOWLEDGE = 2 << 20
MAX_ERRORS = 64 << 10
MAX_SEND = 128 << 10
EXIT_WAIT_S = 5.0
SIGNALS = {
    "HUP": 1,
    "INT": 2,
    "QUIT": 3,
    "ILL": 4,
    "ABRT": 6,
    "FPE": 8,
    "KILL": 9,
    "SEGV": 11,
    "PIPE": 13,
    "ALRM": 14,
    "TERM": 15,
}


class Stream:
    """A channel. The `on_…` methods belong to the transport's thread and never wait."""

    def __init__(self, transport: Transport, number: int, timeout_s: float) -> None:
        self._transport = transport
        self.number = number
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._remote = -1
        self._send_window = 0
        self._send_packet = 0
        self._chunks: deque[bytes] = deque()
        self._errors = bytearray()
        self._unacknowledged = 0
        self._refused: str | None = None
        self._exec_refused = False
        self._exit: int | None = None
        self._eof = False
        self._closed = False
        self._close_sent = False
        self._cut = False

    # -- from the transport's thread

    def _set_remote_channel(self, number: int, window: int, packet: int) -> None:
        """Called by paramiko when the server has opened its end."""
        with self._changed:
            self._remote, self._send_window, self._send_packet = number, window, max(1, min(packet, MAX_SEND))
            self._changed.notify_all()

    def on_refused(self, reason: int, text: str) -> None:
        with self._changed:
            self._refused = one_line(text, 200) or f"reason {reason}"
            self._changed.notify_all()

    def on_window(self, message: Any) -> None:
        with self._changed:
            self._send_window += message.get_int()
            self._changed.notify_all()

    def on_data(self, message: Any) -> None:
        data = message.get_binary()
        with self._changed:
            if data and not self._closed:
                self._chunks.append(data)
                self._changed.notify_all()

    def on_extended_data(self, message: Any) -> None:
        """stderr: its last part is kept, and its room in the window is given back at once so that it can't block stdout."""
        message.get_int()
        data = message.get_binary()
        with self._changed:
            self._errors += data
            del self._errors[:-MAX_ERRORS]
            due = self._take_due(len(data))
        if due:
            self._transport.post_later(struct.pack(">BII", 93, self._remote, due))

    def on_success(self, message: Any) -> None:
        """The command was accepted; what matters is what it says next."""

    def on_failure(self, message: Any) -> None:
        with self._changed:
            self._exec_refused = True
            self._changed.notify_all()

    def on_request(self, message: Any) -> None:
        kind, wants_answer = message.get_text(), message.get_boolean()
        with self._changed:
            if kind == "exit-status":
                self._exit = message.get_int()
            elif kind == "exit-signal":
                self._exit = 128 + SIGNALS.get(message.get_text(), 0)
            self._changed.notify_all()
        if wants_answer:
            self._transport.post_later(struct.pack(">BI", 100, self._remote))

    def on_eof(self, message: Any) -> None:
        with self._changed:
            self._eof = True
            self._changed.notify_all()

    def on_close(self, message: Any) -> None:
        with self._changed:
            self._eof = self._closed = True
            answer, self._close_sent = not self._close_sent, True
            self._changed.notify_all()
        if answer:
            self._transport.post_later(struct.pack(">BI", 97, self._remote))
        self._transport.forget(self)

    def _unlink(self) -> None:
        """Called by paramiko when the session has ended under us."""
        with self._changed:
            self._cut = not self._closed
            self._closed = True
            self._changed.notify_all()

    # -- from everybody else

    def wait_open(self, host: str) -> None:
        """Until the server has opened its end. Raises ServerUnfit when it refuses."""
        deadline = time.monotonic() + self._timeout_s
        with self._changed:
            while self._remote < 0 and self._refused is None and not self._closed:
                self._wait(deadline, self._timeout_s, host)
        if self._refused is not None:
            self._transport.forget(self)
            raise ServerUnfit(
                f"the server opens no session ({self._refused})",
                host=host,
                remedy="its sshd limits sessions (MaxSessions) or forbids this one; look at sshd_config and at authorized_keys",
            )
        if self._closed:
            raise self.lost(host)

    def request_exec(self, command: str) -> None:
        text = command.encode("utf-8", "surrogateescape")
        request = struct.pack(">BII4sBI", 98, self._remote, 4, b"exec", 1, len(text)) + text
        self._transport.post(request)

    def send(self, data: bytes | memoryview, host: str) -> None:
        """All of it, in the order of calls."""
        view = memoryview(data).cast("B")
        with self._sending:
            while view:
                size = self._take_window(len(view), host)
                try:
                    self._transport.post(struct.pack(">BII", 94, self._remote, size) + view[:size])
                except Exception as error:  # EOFError, OSError or SSHException: whatever it is, the session is over
                    raise self.lost(host) from error
                if not self._transport.is_active():
                    raise self.lost(host)
                view = view[size:]

    def _take_window(self, wanted: int, host: str) -> int:
        deadline = time.monotonic() + self._timeout_s
        with self._changed:
            while self._send_window <= 0 and not self._closed and not self._exec_refused:
                self._wait(deadline, self._timeout_s, host)
            if self._closed or self._exec_refused:
                raise self._refusal(host) if self._exec_refused else self.lost(host)
            size = min(wanted, self._send_window, self._send_packet)
            self._send_window -= size
            return size

    def receive(self, limit: int, timeout_s: float, host: str) -> bytes:
        """What there is, at least one byte; b"" when the command has closed its output."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._chunks and not self._eof and not self._closed and not self._exec_refused:
                self._wait(deadline, timeout_s, host)
            if self._exec_refused:
                raise self._refusal(host)
            data = self._take_chunks(limit)
            if not data and not self._eof:
                raise self.lost(host)
            due = 0 if self._closed else self._take_due(len(data))
        if due:
            try:
                self._transport.post(struct.pack(">BII", 93, self._remote, due))
            except Exception:
                # What has come is not thrown away for it: the loss is told when all of it is used up.
                pass
        return data

    def _take_chunks(self, limit: int) -> bytes:
        taken, size = [], 0
        while self._chunks and size < limit:
            chunk = self._chunks.popleft()
            room = limit - size
            if len(chunk) > room:
                self._chunks.appendleft(chunk[room:])
                chunk = chunk[:room]
            taken.append(chunk)
            size += len(chunk)
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def _take_due(self, size: int) -> int:
        """Bytes of window to give back now; few messages, yet never a window that runs dry."""
        self._unacknowledged += size
        if self._unacknowledged < ACKNOWLEDGE:
            return 0
        due, self._unacknowledged = self._unacknowledged, 0
        return due

    def errors(self) -> bytes:
        with self._changed:
            return bytes(self._errors)

    def exit_code(self) -> int | None:
        """The command's; 128 + n after signal n; None when it was not told. Waits shortly once the output has ended."""
        deadline = time.monotonic() + min(EXIT_WAIT_S, self._timeout_s)
        with self._changed:
            while self._exit is None and self._eof and not self._closed and time.monotonic() < deadline:
                self._changed.wait(max(0.0, deadline - time.monotonic()))
            return self._exit

    def close(self) -> None:
        with self._changed:
            tell = self._remote >= 0 and not self._close_sent and not self._cut
            self._close_sent = self._closed = True
            self._chunks.clear()
            self._changed.notify_all()
        if tell and self._transport.is_active():
            # Cut at this very moment: EOFError, OSError or SSHException. It is closed either way.
            with contextlib.suppress(Exception):
                self._transport.post_later(struct.pack(">BI", 97, self._remote))

    def _wait(self, deadline: float, timeout_s: float, host: str) -> None:
        """Holding the condition."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise ConnectionLost(
                f"no answer for {timeout_s:g} s", host=host, remedy="the network or the server hangs; run the same command again"
            )
        self._changed.wait(left)

    def lost(self, host: str) -> ConnectionLost:
        why = self._transport.wire.fault or one_line(self._transport.said_goodbye or "", 200)
        return ConnectionLost(
            f"the connection was lost{f' ({why})' if why else ''}", host=host, remedy="run the same command again"
        )

    def _refusal(self, host: str) -> ServerUnfit:
        return ServerUnfit(
            "the server refuses to run commands",
            host=host,
            remedy="this login is meant for something else; ask for one with a shell",
        )


class StreamSocket:
    """A channel through a jump host, as the socket of the next session."""

    def __init__(self, stream: Stream, host: str) -> None:
        self._stream = stream
        self._host = host
        self._timeout_s: float | None = None

    def settimeout(self, seconds: float | None) -> None:
        self._timeout_s = seconds

    def recv(self, size: int) -> bytes:
        try:
            return self._stream.receive(size, self._timeout_s or 0.1, self._host)
        except ConnectionLost as error:
            if error.message.startswith("no answer"):
                raise TimeoutError from None
            raise OSError(error.message) from None

    def send(self, data: bytes) -> int:
        try:
            self._stream.send(data, self._host)
        except (ConnectionLost, ServerUnfit) as error:
            raise OSError(error.message) from None
        return len(data)

    def close(self) -> None:
        self._stream.close()
