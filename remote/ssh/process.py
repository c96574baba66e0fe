"""A command on the server as a local ssh process: bytes both ways, with deadlines."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from remote.errors import ConnectionLost, RemoteError, UsageError
from remote.screen.text import printable
from remote.ssh.connection import silence
from remote.ssh.said import explain
from remote.ssh.target import Host, Target

if TYPE_CHECKING:
    from remote.ssh.openssh import OpenSSH

log = logging.getLogger("remote.ssh")
HELD = 4 << 20
"""Bytes that may wait here for whoever reads them; ssh then holds back the server."""
PIECE = 64 << 10
MAX_ERRORS = 64 << 10
MAX_REPEATED = 4 << 20
EXIT_WAIT_S = 5.0
LOGIN_S = 150.0
"""A login that asks somebody something, or shows an address to open; sshd's own limit is 120 s."""
SHOW_AFTER_S = 1.0
"""What a server says during the login is shown when the login takes longer than that."""
POLL_S = 0.1
SSH_FAILED = 255
GAVE_UP = (
    "Connection to ",
    "Connection closed",
    "Connection reset",
    "client_loop:",
    "Timeout, server",
    "ssh_",
    "Control master",
)
"""How ssh's lines about a broken connection begin; a command's own 255 leaves none of them."""


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
        kept: OpenSSH | None = None,
    ) -> None:
        self._words, self._environment = words, environment
        self._host, self._target, self._kept = host, target, kept
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._sent: bytearray | None = bytearray() if kept is not None else None
        self._closed = False
        handle, name = tempfile.mkstemp(prefix="ssh-", suffix=".log")
        os.close(handle)
        self._log = Path(name)
        self._spawn()

    def _spawn(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._held = self._shown = 0
        self._errors = bytearray()
        self._ended = self._spoke = False
        self._blocked_since: float | None = None
        self._begun = time.monotonic()
        try:
            self._process = process = subprocess.Popen(
                [self._words[0], "-E", str(self._log), *self._words[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                # Where nobody can be asked, ssh gets no terminal: it can't ask by mistake.
                start_new_session=not self._target.can_ask and os.name != "nt",
                bufsize=0,
            )
        except OSError as error:
            self._log.unlink(missing_ok=True)
            text = f"ssh could not be started: {error.strerror or error}"
            raise UsageError(text, host=self._host.name) from None
        self._saying = threading.Thread(target=self._read_errors, args=(process,), daemon=True)
        self._saying.start()
        for work in (self._read_output, self._watch):
            threading.Thread(target=work, args=(process,), daemon=True).start()

    # -- threads

    def _read_output(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        widen(process.stdout)
        while data := read_some(process.stdout, 1 << 20):
            with self._changed:
                if process is not self._process:
                    break
                self._chunks.append(data)
                self._held += len(data)
                self._spoke, self._sent = True, None
                self._changed.notify_all()
                while self._held > HELD and not self._closed:
                    self._changed.wait()
        process.stdout.close()
        with self._changed:
            if process is self._process:
                self._ended = True
                self._changed.notify_all()

    def _read_errors(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        while data := read_some(process.stderr, PIECE):
            with self._changed:
                if process is self._process:
                    self._errors += data
                    del self._errors[:-MAX_ERRORS]
        process.stderr.close()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """End ssh when the server takes nothing for timeout_s: a write can't be interrupted."""
        while not self._closed and process.poll() is None:
            since = self._blocked_since
            if since is not None and time.monotonic() - since > self._target.timeout_s:
                process.kill()
            time.sleep(POLL_S)

    # -- from everybody else

    def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        with self._sending:
            if self._sent is not None:
                self._sent += view
                if len(self._sent) > MAX_REPEATED:
                    self._sent = None
            self._write(view)

    def _write(self, view: memoryview) -> None:
        process = self._process
        assert process.stdin is not None
        while view:
            begun = self._blocked_since = time.monotonic()
            try:
                count = process.stdin.write(view[:PIECE]) or 0
            except (OSError, ValueError):
                if process is self._process and not self._begin_again():
                    raise self._not_sent(begun) from None
                return
            finally:
                self._blocked_since = None
            view = view[count:]

    def _not_sent(self, begun: float) -> RemoteError:
        if time.monotonic() - begun > self._target.timeout_s:
            return self._silent()
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._closed, EXIT_WAIT_S)
        return self._failure() or self._lost("the command takes no more input")

    def _begin_again(self) -> bool:
        """Over a new login, where the kept one gave nothing at all. False where there was none,
        or it was tried."""
        if self._kept is None or self._sent is None or self._closed or self.log():
            return False
        log.debug("%s: the login that was kept does not answer; a new one", self._host.name)
        kept, self._kept = self._kept, None
        end(self._process)
        kept.replace()
        with self._changed:
            again, self._sent = bytes(self._sent), None
            self._spawn()
        self._write(memoryview(again))
        return True

    def receive(self, limit: int) -> bytes:
        while True:
            silent = not self._wait_for_bytes()
            with self._changed:
                data = self._take(limit)
            if data:
                return data
            failure = self._silent() if silent else self._failure()
            if failure is None:
                return b""
            if self._spoke or not self._begin_again():
                raise failure

    def _wait_for_bytes(self) -> bool:
        """False when nothing comes for too long."""
        since, logged_in = time.monotonic(), bool(self._spoke)
        with self._changed:
            while not self._chunks and not self._ended and not self._closed:
                self._changed.wait(POLL_S)
                self._show_what_is_said()
                if not logged_in and (self._spoke or self.method):
                    since, logged_in = time.monotonic(), True
                if time.monotonic() > since + (
                    self._target.timeout_s if logged_in else self._patience()
                ):
                    return False
        return True

    def _patience(self) -> float:
        """How long a login may take: where somebody is asked or told something, as long as a person
        needs."""
        timeout_s = self._target.timeout_s
        if not self.log() and self._stood:
            return timeout_s
        asked = self._errors or self._target.can_ask
        return LOGIN_S if asked else timeout_s + math.ceil(timeout_s)

    @functools.cached_property
    def _stood(self) -> bool:
        """Whether a kept login answered when that was first asked."""
        return self._kept is not None and self._kept.control("check")

    def _take(self, limit: int) -> bytes:
        taken, size = [], 0
        while self._chunks and size < limit:
            chunk = self._chunks.popleft()
            if size + len(chunk) > limit:
                self._chunks.appendleft(chunk[limit - size :])
                chunk = chunk[: limit - size]
            taken.append(chunk)
            size += len(chunk)
        self._held -= size
        self._changed.notify_all()
        return b"".join(taken)

    def _show_what_is_said(self) -> None:
        """An address to open, a notice: shown when the login waits."""
        if self._spoke or time.monotonic() - self._begun < SHOW_AFTER_S:
            return
        said = bytes(self._errors[self._shown :])
        if said:
            self._shown += len(said)
            sys.stderr.write(printable(said.decode("utf-8", "replace")))
            sys.stderr.flush()

    def _failure(self) -> RemoteError | None:
        """What ended ssh before the command's own end."""
        if self._closed:
            return self._lost("the connection is closed")
        code = self._wait()
        if code is not None and 0 <= code < SSH_FAILED:
            return None
        if code == SSH_FAILED and self.method and not ssh_gave_up(self.log()):
            return None
        if code == SSH_FAILED and not self.log():
            # Over a kept login ssh says nothing: either the login broke, or the command ended so.
            ended = self._kept is not None and self._kept.control("check")
            return None if ended else self._lost("the connection was lost")
        return explain(self.log(), self.errors(), self._host, self._target)

    def _silent(self) -> ConnectionLost:
        return silence(self._host.name, self._target.timeout_s, self._spoke)

    def _lost(self, message: str) -> ConnectionLost:
        return ConnectionLost(message, host=self._host.name)

    def _wait(self) -> int | None:
        try:
            return self._process.wait(EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            return None

    @property
    def method(self) -> str:
        """How this process logged in; "" before that, or over a login that was kept."""
        found = re.search(r'(?m)^Authenticated to .* using "([^"]+)"', self.log())
        return found[1] if found else ""

    def log(self) -> str:
        """What ssh said about itself."""
        try:
            return self._log.read_text("utf-8", "replace")
        except OSError:
            return ""

    def errors(self) -> bytes:
        if self._process.poll() is not None:
            self._saying.join(0.5)  # a jump host's ssh may hold that pipe for longer
        with self._changed:
            return bytes(self._errors)

    def exit_code(self) -> int | None:
        code = self._wait()
        if code is None or code < 0 or (code == SSH_FAILED and ssh_gave_up(self.log())):
            return None
        return code

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        end(self._process)
        for line in self.log().splitlines():
            log.debug("%s: ssh: %s", self._host.name, line)
        self._log.unlink(missing_ok=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Politely first: ssh puts a terminal right again that it has asked at."""
    with contextlib.suppress(OSError):
        process.terminate()
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()


def ssh_gave_up(log: str) -> bool:
    """Whether ssh itself says that the connection ended."""
    return any(line.startswith(GAVE_UP) for line in log.splitlines())


def read_some(pipe: IO[bytes], limit: int) -> bytes:
    try:
        return os.read(pipe.fileno(), limit)
    except (OSError, ValueError):
        return b""


def widen(pipe: IO[bytes]) -> None:
    """A pipe of 1 MiB where Linux grants it: fewer turns between ssh and us."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
