"""A TCP relay on 127.0.0.1 whose attributes are the faults of a network.

    with Relay(server.host, server.port, latency_s=0.025) as relay:
        relay.cut_after(10_000, "up")       # reset once 10,000 bytes went to the server
        relay.stall = "down"                # nothing comes back any more
        relay.refuse = True                 # nobody listens

"up" is from the client to the server, "down" the other way.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Direction = Literal["up", "down"]
T = TypeVar("T")

HOST = "127.0.0.1"
CHUNK = 256 * 1024
IN_FLIGHT = 64 * 1024 * 1024
"""Bytes that a delayed direction holds at most: 1 GB/s over a 50 ms round trip needs 25 MB."""
PATIENCE_S = 10.0
SO_NWRITE = 0x1024
"""macOS: bytes not yet sent; Python has no name for it."""


@dataclass
class _Cut:
    """A reset that is due after `left` more bytes in `direction` (None: both counted together)."""

    left: int
    direction: Direction | None
    every: int | None


@dataclass(eq=False)
class _Pair:
    """One relayed connection: the client's end and the server's end."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter

    def reset(self) -> None:
        """Close both ends with a RST; this must happen inside the event loop, or asyncio closes
        them politely."""
        for end in (self.client, self.server):
            sock = end.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()


class Relay:
    """Relays to `host:port` from `self.host:self.port` while open. Attributes may be set at any
    time, from any thread.

    `latency_s` delays each byte each way and does not limit throughput; `bytes_per_s` limits it,
    each way. `connections` counts those accepted, `cuts` those reset, `bytes_up` and `bytes_down`
    what was passed on.
    """

    host = HOST

    def __init__(
        self, host: str, port: int, *, latency_s: float = 0.0, bytes_per_s: float | None = None
    ) -> None:
        self.target = (host, port)
        self.latency_s = latency_s
        self.bytes_per_s = bytes_per_s
        self._frozen: set[asyncio.StreamWriter] = set()
        self.stall: Direction | Literal["both"] | None = None
        self.connections = self.cuts = self.bytes_up = self.bytes_down = 0
        self.port = 0
        self._cut: _Cut | None = None
        self._halt: _Cut | None = None
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Relay:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *error: object) -> None:
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def cut(self) -> None:
        """Reset every open connection now."""
        self._call(self._reset_all)

    def freeze_open(self) -> None:
        """Nothing passes on the connections that are open now; new ones are well."""
        self._call(
            lambda: self._frozen.update(
                end for pair in self._pairs for end in (pair.client, pair.server)
            )
        )

    def cut_after(
        self, count: int, direction: Direction | None = None, *, repeat: bool = False
    ) -> None:
        """Reset the open connections once `count` more bytes went in `direction` (None: either way,
        added up).

        Exactly `count` bytes are passed on. Happens once, so that a second try gets through, unless
        `repeat`.
        """
        cut = _Cut(count, direction, count if repeat else None)
        self._call(lambda: setattr(self, "_cut", cut))

    def stall_after(self, count: int, direction: Direction) -> None:
        """Nothing passes either way once exactly `count` more bytes went in `direction`, until
        mend()."""
        halt = _Cut(count, direction, None)
        self._call(lambda: setattr(self, "_halt", halt))

    def mend(self) -> None:
        """No fault from now on."""

        def forget() -> None:
            self._cut = self._halt = None
            self.stall = None

        self._call(forget)
        self.refuse = False

    @property
    def refuse(self) -> bool:
        """Whether new connections are refused, as where nobody listens; open ones go on."""
        return self._server is None

    @refuse.setter
    def refuse(self, value: bool) -> None:
        if value != self.refuse:
            self._do(self._unlisten() if value else self._listen())

    @property
    def open_connections(self) -> int:
        return len(self._pairs)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def _call(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        self._do(act())

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._relay, HOST, self.port, limit=CHUNK, backlog=128
        )
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _unlisten(self) -> None:
        # Not wait_closed: from Python 3.12 on it waits for the open connections too.
        server, self._server = self._server, None
        if server:
            server.close()

    async def _shut(self) -> None:
        await self._unlisten()
        self._reset_all()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _reset_all(self) -> None:
        self.cuts += len(self._pairs)
        for pair in list(self._pairs):
            pair.reset()

    async def _relay(self, client_in: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            server_in, server = await asyncio.open_connection(*self.target, limit=CHUNK)
        except OSError:
            client.transport.abort()
            return
        pair = _Pair(client, server)
        self._pairs.add(pair)
        try:
            await asyncio.gather(
                self._pump(client_in, server, "up"), self._pump(server_in, client, "down")
            )
        except (OSError, asyncio.CancelledError):
            pair.reset()  # one end broke, or the relay ends: nobody must take it for a polite end
        finally:
            self._pairs.discard(pair)
            client.close()
            server.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: Direction
    ) -> None:
        """One direction of one connection: what was read is due `latency_s` later, in order."""
        pipe = _DelayLine()
        reading = asyncio.ensure_future(self._fill(source, pipe))
        try:
            while (item := await pipe.get()) is not None:
                due, data = item
                await _sleep_until(due)
                while self.stall in ("both", direction) or sink in self._frozen:
                    await asyncio.sleep(0.005)
                await self._forward(await self._halted(data, sink, direction), sink, direction)
            await reading  # raises what ended the reading
            if sink.can_write_eof():
                sink.write_eof()
        finally:
            reading.cancel()

    async def _fill(self, source: asyncio.StreamReader, pipe: _DelayLine) -> None:
        loop = asyncio.get_running_loop()
        free_at = 0.0
        try:
            while data := await source.read(CHUNK):
                now = loop.time()
                if self.bytes_per_s:
                    free_at = max(free_at, now) + len(data) / self.bytes_per_s
                await pipe.put(max(now, free_at) + self.latency_s, data)
        finally:
            pipe.end(loop.time() + self.latency_s)

    async def _halted(self, data: bytes, sink: asyncio.StreamWriter, direction: Direction) -> bytes:
        """Where a stall was ordered: passes on what comes before it, waits it out, and returns the
        rest."""
        halt = self._halt
        if halt is None or halt.direction != direction:
            return data
        if len(data) <= halt.left:
            halt.left -= len(data)
            return data
        first, rest = data[: halt.left], data[halt.left :]
        self._halt, self.stall = None, "both"
        if first:
            await self._forward(first, sink, direction)
        while self.stall is not None:
            await asyncio.sleep(0.005)
        return rest

    async def _forward(self, data: bytes, sink: asyncio.StreamWriter, direction: Direction) -> None:
        cut = self._cut if self._cut and self._cut.direction in (None, direction) else None
        part = data[: cut.left] if cut else data
        if sink.transport.is_closing():
            raise ConnectionResetError
        # Counted first: who has received a byte must find it counted.
        if direction == "up":
            self.bytes_up += len(part)
        else:
            self.bytes_down += len(part)
        sink.write(part)
        await sink.drain()
        if not cut:
            return
        cut.left -= len(part)
        if cut.left <= 0:
            await _flush(sink)
        if cut.left <= 0 and self._cut is cut:
            self._cut = _Cut(cut.every, cut.direction, cut.every) if cut.every else None
            self._reset_all()


async def _flush(sink: asyncio.StreamWriter) -> None:
    """Wait until the other end's system has everything: a reset throws away what is still on its
    way."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while _on_its_way(sink) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.001)


def _on_its_way(sink: asyncio.StreamWriter) -> int:
    """Bytes that asyncio or the kernel still holds for the other end."""
    sock = sink.get_extra_info("socket")
    if sink.transport.is_closing() or sock.fileno() < 0:
        return 0
    waiting = sink.transport.get_write_buffer_size()
    if sys.platform == "darwin":
        return waiting + int(sock.getsockopt(socket.SOL_SOCKET, SO_NWRITE))
    with contextlib.suppress(OSError):
        waiting += struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    return waiting


class _DelayLine:
    """Chunks with the time at which each is due, bounded by bytes; None marks the end."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()
        self._held = 0
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, due: float, data: bytes) -> None:
        await self._room.wait()
        self._held += len(data)
        if self._held >= IN_FLIGHT:
            self._room.clear()
        self._queue.put_nowait((due, data))

    def end(self, due: float) -> None:
        self._queue.put_nowait((due, b""))
        self._queue.put_nowait(None)

    async def get(self) -> tuple[float, bytes] | None:
        item = await self._queue.get()
        if item is not None:
            self._held -= len(item[1])
            if self._held < IN_FLIGHT:
                self._room.set()
        return item


async def _sleep_until(due: float) -> None:
    wait = due - asyncio.get_running_loop().time()
    if wait > 0:
        await asyncio.sleep(wait)
