"""The SSH transport under a login: paramiko's, with deadlines on the wire, bounded packets, and channels of our own."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import paramiko
from paramiko.common import MSG_CHANNEL_OPEN_FAILURE, MSG_DISCONNECT, cMSG_CHANNEL_OPEN
from paramiko.message import Message
from paramiko.packet import Packetizer

from remote.ssh.channel import PACKET, WINDOW, Stream

LOG = "remote.ssh"
READ_AHEAD = 256 << 10
SMALL = 4 << 10
MAX_READ = 1 << 20
"""No honest packet is longer; a server that announces more would have us gather gigabytes."""
MAX_GREETING = 32 << 10
POLL_S = 0.1

# GCM is one pass where CTR needs a second one for its MAC; the rest follows paramiko's order.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")

logging.getLogger(LOG).addHandler(logging.NullHandler())


class Socket(Protocol):
    """What a wire needs: a socket, or a channel through a jump host."""

    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def close(self) -> None: ...


class Wire:
    """A socket as paramiko wants it: reads ahead, ends a stalled write, refuses absurd lengths, keeps the greeting."""

    def __init__(self, sock: Socket, stall_s: float) -> None:
        self._sock = sock
        self._stall_s = stall_s
        self._ahead = b""
        self._offset = 0
        self._stalled_since: float | None = None
        self._closed = False  # read by paramiko too
        self._acknowledge = quick_acknowledgement(sock)
        self.greeting = b""
        self.greeted = False
        self.fault: str | None = None

    def settimeout(self, seconds: float | None) -> None:
        self._sock.settimeout(seconds)

    def recv(self, size: int) -> bytes:
        if size > MAX_READ:
            raise self._fail(errno.EMSGSIZE, "the server announced a packet of an impossible length")
        if self._offset >= len(self._ahead):
            self._ahead = self._sock.recv(READ_AHEAD)
            if self._acknowledge is not None and len(self._ahead) < SMALL:
                self._acknowledge()
            self._offset = 0
            if not self.greeted:
                self._greet(self._ahead)
        data = self._ahead[self._offset : self._offset + size]
        self._offset += len(data)
        return data

    def _greet(self, data: bytes) -> None:
        """Keep what comes before the protocol's version line: a server that hangs up often says why."""
        self.greeting += data[: MAX_GREETING - len(self.greeting)]
        start = 0 if self.greeting.startswith(b"SSH-") else self.greeting.find(b"\nSSH-") + 1
        if (start or self.greeting.startswith(b"SSH-")) and b"\n" in self.greeting[start:]:
            self.greeting, self.greeted = self.greeting[:start], True
        elif len(self.greeting) >= MAX_GREETING:
            raise self._fail(errno.EPROTO, "what answers there is no SSH server")

    def send(self, data: bytes) -> int:
        try:
            sent = self._sock.send(data)
        except TimeoutError:
            now = time.monotonic()
            self._stalled_since = self._stalled_since or now
            if now - self._stalled_since > self._stall_s:
                raise self._fail(errno.ECONNABORTED, f"the server took nothing for {self._stall_s:g} s") from None
            raise
        self._stalled_since = None
        return sent

    def _fail(self, code: int, fault: str) -> OSError:
        """Not ETIMEDOUT: that would be a TimeoutError, which paramiko takes for "try again"."""
        self.fault = fault
        return OSError(code, fault)

    def close(self) -> None:
        self._closed = True
        shutdown: Callable[[int], None] | None = getattr(self._sock, "shutdown", None)
        with contextlib.suppress(OSError):
            if shutdown is not None:
                shutdown(2)  # wakes the thread that reads
        self._sock.close()


def quick_acknowledgement(sock: Socket) -> Callable[[], None] | None:
    """Acknowledge at once (Linux): sshd sends its small answers with Nagle's delay, and each would wait 40 ms for us."""
    option = getattr(socket, "TCP_QUICKACK", None)
    if option is None or not isinstance(sock, socket.socket) or sock.family == getattr(socket, "AF_UNIX", None):
        return None

    def acknowledge() -> None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, 1)

    return acknowledge


class Packets(Packetizer):
    """Without paramiko's handshake timer: handshake() watches the time, and a timer's thread would hold up our exit."""

    def start_handshake(self, timeout: float) -> None:
        pass


class Transport(paramiko.Transport):
    """One SSH session as a client. Knows why the server hung up; opens channels of our own kind."""

    _channel_handler_table: ClassVar[dict[int, Any]] = {
        93: Stream.on_window,
        94: Stream.on_data,
        95: Stream.on_extended_data,
        96: Stream.on_eof,
        97: Stream.on_close,
        98: Stream.on_request,
        99: Stream.on_success,
        100: Stream.on_failure,
    }

    # What we use of paramiko beyond its published face; tests/unit/test_connection_paramiko.py watches over it.
    _handler_table: dict[int, Any]
    _channels: Any
    server_extensions: dict[str, bytes]

    if TYPE_CHECKING:

        def _next_channel(self) -> int: ...
        def _send_message(self, data: Any) -> None: ...
        def _send_user_message(self, data: Any) -> None: ...
        def _auth_trigger(self) -> None: ...

    def __init__(self, wire: Wire, timeout_s: float, key_algorithms: tuple[str, ...]) -> None:
        super().__init__(
            cast("socket.socket", wire), default_window_size=WINDOW, default_max_packet_size=PACKET, packetizer_class=Packets
        )
        self.wire = wire
        self.timeout_s = timeout_s
        self.said_goodbye: str | None = None
        self.set_log_channel(LOG)
        self.clear_to_send_timeout = timeout_s
        self.banner_timeout = 2 * timeout_s + 5  # later than handshake()'s own, which says what happened
        self._preferred_keys = key_algorithms
        self._preferred_ciphers = CIPHERS
        self._handler_table[MSG_CHANNEL_OPEN_FAILURE] = self._on_open_failure
        self._finished = threading.Event()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._finished.set()

    def _parse_disconnect(self, message: Any) -> None:
        message.get_int()
        self.said_goodbye = message.get_binary()[:1000].decode("utf-8", "replace")

    def handshake(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Key exchange; `meanwhile` runs beside it. Raises what went wrong as paramiko or the socket said it."""
        done = threading.Event()
        deadline = time.monotonic() + self.timeout_s
        self.start_client(event=done)
        if meanwhile is not None:
            meanwhile()
        while not done.wait(POLL_S):
            if self._finished.is_set() or time.monotonic() > deadline:
                break
        if self.is_active() and not self._finished.is_set() and done.is_set():
            return
        cause = self.get_exception() or EOFError() if done.is_set() or self._finished.is_set() else TimeoutError()
        self.close()
        raise cause

    def open_stream(self, kind: str, extra: bytes = b"") -> Stream:
        """Ask for a channel without waiting for the answer; Stream.wait_open does that."""
        with self.lock:
            number = self._next_channel()
            stream = Stream(self, number, self.timeout_s)
            self._channels.put(number, stream)
            self.channels_seen[number] = True
        message = Message()
        message.add_byte(cMSG_CHANNEL_OPEN)
        message.add_string(kind)
        for value in (number, WINDOW, PACKET):
            message.add_int(value)
        message.add_bytes(extra)
        self._send_user_message(message)
        return stream

    def forget(self, stream: Stream) -> None:
        self._channels.delete(stream.number)

    def _on_open_failure(self, message: Any) -> None:
        stream = self._channels.get(message.get_int())
        reason = message.get_int()
        text = message.get_binary()[:1000].decode("utf-8", "replace")
        if isinstance(stream, Stream):
            stream.on_refused(reason, text)

    def post(self, data: bytes) -> None:
        """Send one encoded message. Waits while keys are renewed, so it must not run in the transport's own thread."""
        self._send_user_message(Encoded(data))

    def post_later(self, data: bytes) -> None:
        """For answers from the transport's own thread, which must not wait for itself while keys are renewed."""
        if self.clear_to_send.is_set():
            self._send_message(Encoded(data))
        else:
            threading.Thread(target=self._post_quietly, args=(data,), daemon=True).start()

    def _post_quietly(self, data: bytes) -> None:
        # Where the session is over, whoever waits on it hears so.
        with contextlib.suppress(EOFError, OSError, paramiko.SSHException):
            self.post(data)


class Encoded:
    """A message that is bytes already."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def asbytes(self) -> bytes:
        return self.data


assert MSG_DISCONNECT == 1  # the numbers above are RFC 4250's
