"""The whole terminal for one drawing that changes, and the keys that are pressed meanwhile."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from remote.screen.display import Display

if TYPE_CHECKING:
    from rich.console import RenderableType


@contextlib.contextmanager
def full_screen(
    display: Display,
    drawing: RenderableType,
    write: Callable[[str], None],
    pressed: Callable[[str], None],
) -> Iterator[None]:
    """While the block runs the terminal shows `drawing`; `write` takes what would be printed, and
    `pressed` each key, in another thread."""
    from rich.live import Live

    display.clear()
    live = Live(
        drawing,
        console=display.console(display.out),
        screen=True,
        refresh_per_second=4,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    display.sink = write
    try:
        with leaving_in_order(display.out), live, keys(pressed):
            yield
    finally:
        display.sink = None


LEAVE, ENTER = b"\x1b[?1049l\x1b[?25h", b"\x1b[?1049h\x1b[?25l\x1b[H"
"""To the screen as it was, with its cursor; and back to ours."""


@contextlib.contextmanager
def leaving_in_order(out: TextIO) -> Iterator[None]:
    """Nobody's terminal stays as we had it: `kill` and a window that is closed end the block, as
    an error does; Ctrl-Z shows the shell until `fg`."""
    if not has_keys() or threading.current_thread() is not threading.main_thread():
        yield
        return
    import termios

    known = termios.tcgetattr(sys.stdin)

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    def pause(number: int, frame: object) -> None:
        # Not by `out`, which may be in the middle of a write.
        ours = termios.tcgetattr(sys.stdin)
        os.write(out.fileno(), LEAVE)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, known)
        os.kill(os.getpid(), signal.SIGSTOP)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, ours)
        os.write(out.fileno(), ENTER)

    acts = {signal.SIGTERM: end, signal.SIGHUP: end, signal.SIGTSTP: pause}
    before = {number: signal.signal(number, act) for number, act in acts.items()}
    try:
        yield
    finally:
        for number, act in before.items():
            signal.signal(number, act)


def has_keys() -> bool:
    """Whether a key is noticed as it is pressed: somebody types, and not on Windows."""
    return os.name != "nt" and sys.stdin.isatty()


@contextlib.contextmanager
def keys(pressed: Callable[[str], None]) -> Iterator[None]:
    """Each key as it is pressed, without Enter. Ctrl-C stays what it is."""
    if not has_keys():
        yield
        return
    import termios
    import tty

    stdin = sys.stdin.fileno()
    known = termios.tcgetattr(stdin)
    told, stop = os.pipe()

    def read() -> None:
        while stdin in (ready := select.select([stdin, told], [], [])[0]) and told not in ready:
            if not (data := os.read(stdin, 64)):
                return
            for sign in data.decode("utf-8", "replace"):
                pressed(sign)

    reader = threading.Thread(target=read, daemon=True)
    try:
        tty.setcbreak(stdin, termios.TCSANOW)
        reader.start()
        yield
    finally:
        os.write(stop, b".")
        reader.join(2)
        termios.tcsetattr(stdin, termios.TCSANOW, known)
        os.close(told)
        os.close(stop)


def interrupt() -> None:
    """As Ctrl-C does: what the main thread waits for ends."""
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGINT)
