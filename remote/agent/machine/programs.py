"""Asks other programs, within a time limit, what they say."""

import subprocess
import time
from typing import Any, Dict, List, NamedTuple, Optional

from remote.agent.root.calls import Call

NOT_STARTED, ENDED = 127, 124
"""Exit codes, as a shell and timeout(1) have them."""
NO_ANSWER = "no answer"


class Said(NamedTuple):
    """`code`: the exit code. Where it was not started, or came too `late`, `err` says so."""

    code: int
    out: str
    err: str
    late: bool = False

    @property
    def last_line(self) -> str:
        """Of its complaint; the exit code where it has none."""
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else f"exit code {self.code}"


def ask(
    argv: List[str],
    timeout_s: float,
    environment: Optional[Dict[str, str]] = None,
    directory: Optional[str] = None,
) -> Said:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            cwd=directory,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return _late(timeout_s)
    except (OSError, ValueError) as error:
        return Said(NOT_STARTED, "", getattr(error, "strerror", None) or str(error))
    return _said(done.returncode, done.stdout, done.stderr)


def begin(
    argv: List[str], environment: Dict[str, str], directory: Optional[str] = None
) -> "subprocess.Popen[bytes]":
    """A program whose words are read later. Raises OSError where it can't be started."""
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=directory,
    )


def finish(child: "subprocess.Popen[bytes]", timeout_s: float) -> Said:
    """What a program says in the end. One that is late is killed and not waited for: what hangs in
    the GPU's driver can't be killed."""
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        return _late(timeout_s)
    return _said(child.returncode, out, err)


def watch(
    call: Call, child: "subprocess.Popen[bytes]", timeout_s: float = float("inf"), **told: Any
) -> Said:
    """What a program says that takes long: the laptop is told each second that it goes on, and with
    the laptop's connection it ends."""
    started = time.monotonic()
    try:
        while True:
            seconds = time.monotonic() - started
            call.event(**told, seconds=round(seconds, 1))
            try:
                out, err = child.communicate(timeout=1.0)
                return _said(child.returncode, out, err)
            except subprocess.TimeoutExpired:
                if seconds > timeout_s:
                    return _late(timeout_s)
    finally:
        # Not waited for: one that hangs in the GPU's driver can't be killed.
        if child.poll() is None:
            child.kill()


def _late(timeout_s: float) -> Said:
    return Said(ENDED, "", f"{NO_ANSWER} within {timeout_s:.0f} s", late=True)


def _said(code: int, out: bytes, err: bytes) -> Said:
    return Said(code, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))
