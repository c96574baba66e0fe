"""Serves one laptop over stdin and stdout: reads requests, runs operations one at a time, ends when
the laptop is gone."""

import errno
import os
import queue
import threading
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

from remote.agent.root import program
from remote.agent.root.calls import OPERATIONS, Call, Owner, Refusal
from remote.agent.root.disk import mount_of, naming_disk
from remote.agent.root.paths import Layout, resolve_root
from remote.agent.shared import protocol

ALIVE_EVERY_S = 5.0
GRACE_S = 10.0
"""How long an operation may go on after the laptop is gone, to end at a clean point by itself."""


class Server:
    """`idle_s`: a laptop that is silent for longer (it pings) is taken for gone, so that its locks
    are freed."""

    def __init__(self, reader: int, writer: int, idle_s: float) -> None:
        self.reader = reader
        self.writer = writer
        self.idle_s = idle_s
        self.frames: queue.Queue[Optional[protocol.Frame]] = queue.Queue(maxsize=16)
        self.gone = threading.Event()
        self.heard = time.monotonic()
        self.write_lock = threading.Lock()

    def serve(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        while True:
            frame = self.frames.get()
            if frame is None:
                return
            message, _ = frame
            if "op" in message:
                self._handle(message)

    def send(self, message: Dict[str, Any], blob: bytes = b"") -> None:
        header = protocol.encode(message, len(blob))
        with self.write_lock:
            self._write(header)
            if blob:
                self._write(blob)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.writer, view) :]

    def _read_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = os.read(self.reader, min(count - len(data), 1 << 20))
            if not piece:
                raise EOFError
            self.heard = time.monotonic()
            data += piece
        return bytes(data)

    def _read(self) -> None:
        try:
            while True:
                frame = protocol.read_frame(self._read_exactly)
                if "ping" not in frame[0]:
                    self.frames.put(frame)
                self.heard = time.monotonic()
        except (EOFError, OSError, protocol.BadFrame):
            pass
        self.gone.set()
        self.frames.put(None)

    def _watch(self) -> None:
        """Tells the laptop that we live, and ends the process when the laptop does not."""
        while not self.gone.wait(min(ALIVE_EVERY_S, self.idle_s / 4)):
            # A full queue means that we are slow, not that the laptop is silent.
            if time.monotonic() - self.heard > self.idle_s and not self.frames.full():
                # Whoever waits for an upload is told: the lock must not be held for longer than the
                # silence.
                self.gone.set()
                self.frames.put(None)
                break
            threading.Thread(target=self._say_alive, daemon=True).start()
        self.gone.set()
        time.sleep(GRACE_S)
        os._exit(0)

    def _say_alive(self) -> None:
        # Never wait behind a large answer: what flows already tells that we live.
        if self.write_lock.acquire(blocking=False):
            try:
                self._write(protocol.encode({"alive": True}))
            except OSError:
                self.gone.set()
            finally:
                self.write_lock.release()

    def _handle(self, message: Dict[str, Any]) -> None:
        call = ServedCall(self, message.get("id"))
        try:
            name = message.get("op")
            function = OPERATIONS.get(name) if isinstance(name, str) else None
            if function is None:
                raise Refusal("ProtocolError", f"the agent knows no operation {name!r:.60}")
            args = dict(message["args"])
            call.layout = Layout(resolve_root(args.pop("root")))
            call.owner = Owner(args.pop("project", ""), args.pop("identity", None))
            with naming_disk(os.path.join(call.layout.root, "")):
                result = function(call, **args)
            self.send({"id": call.id, "result": result})
        except (BrokenPipeError, EOFError):
            self.gone.set()
        except Refusal as refusal:
            self._refuse(call, refusal)
        except OSError as error:
            self._refuse(call, refusal_for(error))
        except Exception:
            import traceback  # takes long to load

            self._refuse(call, Refusal("bug", traceback.format_exc(limit=-6)))
        call.drain()

    def _refuse(self, call: "ServedCall", refusal: Refusal) -> None:
        names = ("kind", "message", "remedy", "details")
        self.send({"id": call.id, "error": {name: getattr(refusal, name) for name in names}})


class ServedCall(Call):
    def __init__(self, server: Server, number: Any) -> None:
        self.server = server
        self.id = number
        self.uploading = False
        self.ended = False

    def event(self, blob: bytes = b"", **fields: Any) -> None:
        if self.server.gone.is_set():
            raise BrokenPipeError
        self.server.send({"id": self.id, "event": fields}, blob)

    def blobs(self) -> Iterator[Tuple[Dict[str, Any], bytes]]:
        self.uploading = True
        while True:
            frame = self.server.frames.get()
            if frame is None:
                self.server.frames.put(None)
                raise EOFError
            message, blob = frame
            if message.get("id") != self.id:
                continue
            if "end" in message:
                self.ended = True
                return
            yield message.get("data") or {}, blob

    def alive(self) -> bool:
        return not self.server.gone.is_set()

    def drain(self) -> None:
        """After a refusal in the middle of an upload: throw away what is still on its way."""
        if self.uploading and not self.ended:
            try:
                for _ in self.blobs():
                    pass
            except EOFError:
                pass


def refusal_for(error: OSError) -> Refusal:
    where = f": {error.filename}" if error.filename else ""
    if error.errno == errno.EDQUOT:
        return Refusal(
            "ServerUnfit",
            f"your quota on the server's disk is used up{where}{_on_mount(error.filename)}",
            "quota -s there tells it; free some space of yours, or set remote.root to another disk",
        )
    if error.errno == errno.ENOSPC:
        return Refusal(
            "ServerUnfit",
            f"no space left on the server's disk{where}{_on_mount(error.filename)}",
            "free some space, or set remote.root to another disk",
        )
    return Refusal("ServerUnfit", f"{error.strerror or error}{where}")


def _on_mount(name: Any) -> str:
    if not isinstance(name, (str, bytes)):
        return ""
    return f" (the disk at {mount_of(os.path.dirname(os.fsdecode(name)))})"


def main(hello: Dict[str, Any], waiting: List[protocol.Frame]) -> None:
    """Take stdin and stdout for the protocol; whatever else prints goes to stderr. `waiting`:
    requests already received."""
    reader, writer = os.dup(0), os.dup(1)
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    os.dup2(2, 1)
    os.umask(0o077)
    idle_s = hello.get("idle_s", 60.0)
    server = Server(reader, writer, float(idle_s))
    for frame in waiting:
        server.frames.put(frame)
    server.serve()
    program.compile_wanted()
    os._exit(0)
