"""A command on the server as a local ssh process: bytes both ways, with deadlines."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, Full, Queue
from typing import IO, Protocol

from remote.errors import ConnectionLost, RemoteError
from remote.screen.text import printable
from remote.ssh.connection import LOGIN_S, MAX_ERRORS, silence
from remote.ssh.said import explain
from remote.ssh.ssh_log import SshLog, without_steps
from remote.ssh.target import Host, Target

log = logging.getLogger("remote.ssh")
READ_PIECE, MOST_READ = 256 << 10, 16
"""4 MiB may wait here for whoever reads them; ssh then holds back the server."""
SENT_PIECE, MOST_SENT = 32 << 10, 48
"""1.5 MiB may wait for ssh: our program, and what is asked first, while somebody types a password;
not more, for how fast the line is, is seen from how fast ssh takes them."""
EXIT_WAIT_S = 5.0
SHOW_AFTER_S = 1.0
"""What a server says during the login is shown when the login takes longer than that."""
POLL_S = 0.1
SSH_FAILED = 255
BREAKS_S = 0.3
"""A kept login that has just broken may still answer."""


class KeptLogin(Protocol):
    def control(self, what: str, hung: bool = False) -> bool:
        """Ask its own process: check, stop or exit. `hung`: what one that does not answer at all
        counts as."""

    def replace(self) -> list[str]:
        """So that the next command logs in anew: the words it needs for that."""


class Process:
    """One ssh process. Its words about itself go to a log file, the server's to stderr.

    `kept` is who has a login that other commands share. A command that gets no first byte over such
    a login is sent again over a new one.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        host: Host,
        target: Target,
        kept: KeptLogin | None = None,
    ) -> None:
        self._words, self._environment = words, environment
        self._host, self._target, self._kept = host, target, kept
        # What has been sent, as long as it may have to be sent again.
        self._sent: list[bytes] | None = [] if kept is not None else None
        self._sending = threading.Lock()
        self._rest = b""
        self._closed = False
        self.log = SshLog()
        self._spawn()

    def _spawn(self) -> None:
        self._input: Queue[bytes | None] = Queue(MOST_SENT)
        self._output: Queue[bytes] = Queue(MOST_READ)
        self._errors = bytearray()
        self._spoke, self._shown = False, 0
        self._begun = time.monotonic()
        with uninterrupted():
            self._process = process = subprocess.Popen(
                ["ssh", "-E", str(self.log.path), *self._words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                # Where nobody can be asked, ssh gets no terminal: it can't ask by mistake.
                start_new_session=not self._target.can_ask and os.name != "nt",
            )
        self._writing = begin(write_input, process.stdin, self._input)
        self._saying = begin(read_errors, process.stderr, self._errors)
        begin(read_output, process.stdout, self._output)

    def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        with self._sending:
            for at in range(0, len(view), SENT_PIECE):
                piece = bytes(view[at : at + SENT_PIECE])
                if self._sent is not None:
                    self._sent.append(piece)
                self._put(piece)

    def _put(self, piece: bytes) -> None:
        deadline = time.monotonic() + self._target.timeout_s
        while self._writing.is_alive():
            with contextlib.suppress(Full):
                return self._input.put(piece, timeout=POLL_S)
            if time.monotonic() > deadline:
                raise self._silent()
        if self._sent is None:
            raise self._failure() or self._lost("the command takes no more input")

    def receive(self, limit: int) -> bytes:
        if not self._rest:
            self._rest = self._next_piece()
        data, self._rest = self._rest[:limit], self._rest[limit:]
        return data

    def _next_piece(self) -> bytes:
        """b"" where the command has ended by itself."""
        while True:
            piece = self._wait_for_piece()
            if piece:
                self._spoke, self._sent = True, None
                return piece
            failure = self._silent() if piece is None else self._failure()
            if failure is None:
                self._output.put(b"")
                return b""
            if not self._begin_again():
                raise failure

    def _wait_for_piece(self) -> bytes | None:
        """b"" at the end, None when nothing comes for too long."""
        since, logged_in = time.monotonic(), self._spoke
        while not self._closed:
            with contextlib.suppress(Empty):
                return self._output.get(timeout=POLL_S)
            self._show_what_is_said()
            if not logged_in and self.log.method:
                since, logged_in = time.monotonic(), True
            patience_s = self._target.timeout_s if logged_in else self._patience()
            if time.monotonic() > since + patience_s:
                return None
        return b""

    def _patience(self) -> float:
        """How long a login may take: where somebody is asked or told something, as long as a person
        needs."""
        timeout_s = self._target.timeout_s
        if not self.log.said() and self._stood:
            return timeout_s
        asked = self._errors or self._target.can_ask
        return LOGIN_S if asked else timeout_s + math.ceil(timeout_s)

    @functools.cached_property
    def _stood(self) -> bool:
        """Whether a kept login stood when that was first asked, be it one that hangs."""
        return self._kept is not None and self._kept.control("check", hung=True)

    def _show_what_is_said(self) -> None:
        """An address to open, a notice: shown when the login waits."""
        if self._spoke or time.monotonic() - self._begun < SHOW_AFTER_S:
            return
        if said := self._said()[self._shown :]:
            self._shown += len(said)
            sys.stderr.write(printable(said))
            sys.stderr.flush()

    def _begin_again(self) -> bool:
        """Over a new login, where the kept one gave nothing at all. False where there was none,
        or it was tried."""
        if self._kept is None or self._sent is None or self._closed or self.log.said():
            return False
        log.debug("%s: the login that was kept does not answer; a new one", self._host.name)
        self._end()
        self._words = [*self._kept.replace(), *self._words]
        with self._sending:
            again, self._sent = self._sent, None
            self._spawn()
            for piece in again:
                self._put(piece)
        return True

    def _failure(self) -> RemoteError | None:
        """What ended ssh before the command's own end."""
        if self._closed:
            return self._lost("the connection is closed")
        code, said = self.exit_code(), self.log.said()
        if code is not None and (code < SSH_FAILED or self.log.method):
            return None
        if code == SSH_FAILED and not said:
            # Over a kept login ssh says nothing: either the login broke, or the command ended so.
            time.sleep(BREAKS_S)
            ended = self._kept is not None and self._kept.control("check")
            return None if ended else self._lost("the connection was lost")
        return explain(said, self.errors(), self._host, self._target)

    def _silent(self) -> ConnectionLost:
        if self._kept is not None and self._spoke:
            self._kept.replace()  # a line that is dead takes no new command
        return silence(self._host.name, self._target.timeout_s, self._spoke)

    def _lost(self, message: str) -> ConnectionLost:
        return ConnectionLost(message, host=self._host.name)

    def errors(self) -> bytes:
        if self._process.poll() is not None:
            self._saying.join(0.5)  # a jump host's ssh may hold that pipe for longer
        return self._said().encode()

    def _said(self) -> str:
        return without_steps(self._errors.decode("utf-8", "replace"))

    def exit_code(self) -> int | None:
        try:
            code = self._process.wait(EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            return None
        broke = code < 0 or (code == SSH_FAILED and self.log.gave_up)
        return None if broke else code

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._end()
        for line in self.log.said().splitlines():
            log.debug("%s: ssh: %s", self._host.name, line)
        self.log.remove()

    def _end(self) -> None:
        """Politely first: ssh puts a terminal right again that it has asked at."""
        self._process.terminate()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Whoever waits at a queue comes to an end, too.
        with contextlib.suppress(Full):
            self._input.put_nowait(None)
        with contextlib.suppress(Empty):
            while True:
                self._output.get_nowait()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C is ours: ssh, and a jump host's in its turn, are started so that they pass over it,
    for a login that is kept would end with them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def begin(work: Callable[..., None], pipe: IO[bytes] | None, place: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=(pipe, place), daemon=True)
    thread.start()
    return thread


def write_input(pipe: IO[bytes], pieces: Queue[bytes | None]) -> None:
    with contextlib.suppress(OSError), pipe:
        while (piece := pieces.get()) is not None:
            pipe.write(piece)
            pipe.flush()


def read_output(pipe: IO[bytes], pieces: Queue[bytes]) -> None:
    widen(pipe)
    with pipe:
        while data := os.read(pipe.fileno(), READ_PIECE):
            pieces.put(data)
    pieces.put(b"")


def read_errors(pipe: IO[bytes], errors: bytearray) -> None:
    with pipe:
        while data := os.read(pipe.fileno(), MAX_ERRORS):
            errors += data
            del errors[:-MAX_ERRORS]


def widen(pipe: IO[bytes]) -> None:
    """A pipe of 1 MiB where Linux grants it: fewer turns between ssh and us."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
