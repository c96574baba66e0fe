"""The terminal of a run: a pseudo-terminal whose output becomes the log, and whose screen is shown
to whoever attaches.

A process of its own: it outlives a supervisor that is killed, so that the training goes on writing.
Where it runs in tmux, its own terminal shows all and takes the keys.
"""

import fcntl
import os
import re
import select
import signal
import struct
import termios
import time
import traceback
import tty
from typing import Any, Dict, List, Optional, Tuple

from remote.agent.machine.processes import group_members
from remote.agent.root.paths import remove_file, write_json
from remote.agent.run_files.outputs import SHOWN
from remote.agent.run_files.private import hider

COLUMNS, LINES = 120, 40
SAY_EVERY_S = 0.5
QUIET_S = 1.0
"""Lines that could still be drawn anew become the log's after so long."""
ASKS_AFTER_S = 3.0
LOOK_EVERY_S = 2.0
"""Looking through all processes costs milliseconds; a training may be quiet for hours."""
CTRL_C = b"\x03"
# Of what terminals understand: colours and the like are left out of the log; moves up and erased
# lines are followed.
SEQUENCE = re.compile(
    rb"\r\n|[\r\n\x08]|\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"
    rb"|\x1b[()*+][0-9A-Za-z]|\x1b[=>78DEHMNOPVWXZc^_\\]|\x07"
)
UNFINISHED = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]{0,4096}\x1b?|[()*+])?\Z|\r\Z")
LONGEST = 64 << 10
LAST_READS = 100
KEPT = 1 << 20
"""Bytes of the log that wait for a disk that is full."""
READ_CALLS = {"x86_64": "0", "aarch64": "63", "ppc64le": "3", "riscv64": "63"}


class Screen:
    """A stream for terminals as lines for a log: what is drawn over again counts once, as it was
    last."""

    def __init__(self) -> None:
        self.rows: List[bytearray] = [bytearray()]
        self.row = 0
        self.fresh = False  # the next character begins the line anew
        self.kept = 0  # so many finished lines may still be drawn anew
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Returns the lines that are finished."""
        data = self.rest + data
        partly = UNFINISHED.search(data)
        self.rest = data[partly.start() :] if partly else b""
        data = data[: partly.start()] if partly else data
        at, out = 0, bytearray()
        for found in SEQUENCE.finditer(data):
            self._write(data[at : found.start()])
            at = found.end()
            out += self._control(found.group())
        self._write(data[at:])
        if len(self.rows[self.row]) > LONGEST:
            out += self.finish(final=False)
        return bytes(out)

    def finish(self, final: bool = True) -> bytes:
        """All that is held back; `final`: the line that is not finished, too."""
        whole = b"".join(bytes(row) + b"\n" for row in self.rows[:-1])
        last = self.rows[-1]
        if final or len(last) > LONGEST:
            whole, last = whole + bytes(last), bytearray()
        self.rows, self.row, self.kept = [last], 0, 0
        return whole

    @property
    def line(self) -> str:
        """The last line that shows something."""
        shown = [bytes(row) for row in self.rows if row]
        return shown[-1].decode("utf-8", "replace") if shown else ""

    @property
    def holds_lines(self) -> bool:
        return len(self.rows) > 1 and self.row == len(self.rows) - 1 and not self.rows[-1]

    def _write(self, text: bytes) -> None:
        if text:
            if self.fresh:
                self.rows[self.row].clear()
                self.fresh = False
            self.rows[self.row] += text

    def _control(self, sign: bytes) -> bytes:
        if sign in (b"\n", b"\r\n"):
            self.fresh = False
            self.row += 1
            if self.row == len(self.rows):
                self.rows.append(bytearray())
            else:
                self.fresh = True
            return self._let_go()
        if sign == b"\r":
            self.fresh = True
        elif sign == b"\x08":
            del self.rows[self.row][-1:]
        elif sign[:2] == b"\x1b[":
            count = int(sign[2:-1][:9]) if sign[2:-1].isdigit() else 1
            if sign[-1:] in b"AF":
                self.kept = min(LINES, max(self.kept, count))
                self.row, self.fresh = max(0, self.row - count), True
            elif sign[-1:] in b"BE":
                self.row, self.fresh = min(len(self.rows) - 1, self.row + count), True
            elif sign[-1:] == b"K" and (self.fresh or sign[2:-1] == b"2"):
                self.rows[self.row].clear()
        return b""

    def _let_go(self) -> bytes:
        out = bytearray()
        while len(self.rows) - 1 > self.kept and self.row > 0:
            out += self.rows.pop(0) + b"\n"
            self.row -= 1
        return bytes(out)


def open_terminal() -> Tuple[int, int]:
    """Both ends of a new one, of the size that programs are told: the terminal's own, and the one
    that a program gets."""
    own, programs = os.openpty()
    set_size(own, COLUMNS, LINES)
    modes = termios.tcgetattr(programs)
    # Ctrl-S, typed by mistake, would hold up a training until somebody finds out.
    modes[0] &= ~termios.IXON
    termios.tcsetattr(programs, termios.TCSANOW, modes)
    return own, programs


def set_size(fd: int, columns: int, lines: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def fork(directory: str, own: int) -> int:
    """Start the process that keeps a run's terminal; returns its number.

    It ends when the last program has closed the terminal, or when it is told so by `wait`.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # Of what was inherited, the supervisor's lock must not be held on.
        os.closerange(3, own)
        os.closerange(own + 1, max(own + 2, 256))
        Terminal(directory, own).run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def wait(pid: int) -> bool:
    """Until the terminal has told everything; a program that went its own way and still holds it is
    not waited for. The disk that the log lies on may stand still for a while."""
    for number, seconds in ((0, 2.0), (signal.SIGUSR1, 30.0), (signal.SIGKILL, 2.0)):
        try:
            if number:
                os.kill(pid, number)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    return True
                time.sleep(0.02)
        except (ProcessLookupError, ChildProcessError):
            return True
    return False


class Terminal:
    def __init__(self, directory: str, own: int) -> None:
        self.directory = directory
        self.own = own
        self.hide = hider(directory)
        self.screen = Screen()
        self.log = os.open(
            os.path.join(directory, "train.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        self.attached = os.isatty(0) and os.isatty(1)
        self.unwritten = bytearray()
        self.told: Dict[str, Any] = {}
        self.told_at = 0.0
        self.heard = time.monotonic()
        self.looked = 0.0
        self.interrupted = False
        self.over = False

    def run(self) -> int:
        signal.signal(signal.SIGUSR1, self._end)
        before = self._take_keys()
        try:
            while self._turn() and not self.over:
                pass
            # What was written until it was told to end: no program's last words are left unread.
            for _ in range(LAST_READS):
                if not (select.select([self.own], [], [], 0)[0] and self._turn()):
                    break
        finally:
            self._write_log(self.screen.finish())
            if before is not None:
                termios.tcsetattr(0, termios.TCSANOW, before)
            if self.interrupted:
                write_json(os.path.join(self.directory, SHOWN), {"interrupted": True})
            else:
                remove_file(os.path.join(self.directory, SHOWN))
        return 0

    def _end(self, *_: Any) -> None:
        self.over = True

    def _take_keys(self) -> Optional[List[Any]]:
        """Keys go to the program as they come, Ctrl-C among them; and it learns of a new size of
        the window."""
        if not self.attached:
            return None
        before = termios.tcgetattr(0)
        tty.setraw(0, termios.TCSANOW)
        signal.signal(signal.SIGWINCH, lambda *_: self._resize())
        return before

    def _resize(self) -> None:
        try:
            lines, columns = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))[:2]
            set_size(self.own, columns or COLUMNS, lines or LINES)
        except OSError:
            pass

    def _turn(self) -> bool:
        """Wait for output, keys or half a second. False once no program has the terminal any
        more."""
        sources = [self.own, 0] if self.attached else [self.own]
        ready = select.select(sources, [], [], SAY_EVERY_S)[0]
        if self.own in ready:
            try:
                data = os.read(self.own, 64 << 10)
            except OSError:  # EIO: it was closed
                return False
            if not data:
                return False
            self.heard = time.monotonic()
            self._show(data)
            self._write_log(self.screen.feed(data))
        if 0 in ready and self.attached:
            self._pass_keys()
        if self.screen.holds_lines and time.monotonic() - self.heard > QUIET_S:
            self._write_log(self.screen.finish(final=False))
        if time.monotonic() - self.told_at >= SAY_EVERY_S:
            self._tell()
        return True

    def _pass_keys(self) -> None:
        try:
            keys = os.read(0, 4096)
        except OSError:
            keys = b""
        if not keys:
            self.attached = False  # tmux has gone
            return
        self.interrupted = self.interrupted or CTRL_C in keys
        # A program that reads nothing must not be held up by it: what it has no room for is lost.
        os.set_blocking(self.own, False)
        try:
            os.write(self.own, keys)
        except BlockingIOError:
            pass
        finally:
            os.set_blocking(self.own, True)

    def _show(self, data: bytes) -> None:
        try:
            while self.attached and data:
                data = data[os.write(1, data) :]
        except OSError:
            self.attached = False

    def _write_log(self, data: bytes) -> None:
        self.unwritten += self.hide(data)
        try:
            while self.unwritten:
                del self.unwritten[: os.write(self.log, self.unwritten)]
        except OSError:
            # A full disk: whoever watches that stops the run; its output must flow on until it has
            # saved. Where there is room again, the newest of it is written.
            del self.unwritten[:-KEPT]

    def _tell(self) -> None:
        self.told_at = time.monotonic()
        line = self.hide(self.screen.line.encode()).decode()[-400:]
        told: Dict[str, Any] = {"line": line, "asking": self._asks()}
        if told == self.told:
            return
        self.told = told
        try:
            write_json(os.path.join(self.directory, SHOWN), told)
        except OSError:
            pass

    def _asks(self) -> bool:
        """Whether a program waits for keys: it reads from the terminal, or a line editor has taken
        it over, and all is quiet."""
        now = time.monotonic()
        if now - self.heard < ASKS_AFTER_S:
            return False
        if now - self.looked < LOOK_EVERY_S:
            return self.told.get("asking") is True
        self.looked = now
        try:
            edits = not termios.tcgetattr(self.own)[3] & termios.ICANON
            return edits or any(
                reads_terminal(pid) for pid in group_members(os.tcgetpgrp(self.own))
            )
        except (OSError, termios.error):
            return False


def reads_terminal(pid: int) -> bool:
    """Whether the process stands in a read of a terminal; False where the kernel does not say."""
    try:
        with open(f"/proc/{pid}/syscall") as file:
            words = file.read().split()
        if len(words) < 2 or words[0] != READ_CALLS.get(os.uname().machine):
            return False
        return os.readlink(f"/proc/{pid}/fd/{int(words[1], 16)}").startswith(
            ("/dev/pts/", "/dev/tty")
        )
    except (OSError, ValueError):
        return False


def attach_program() -> None:
    """In a program that is being started: its session's terminal is the one that it has for its
    input."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
