"""Runs installers: their output goes line by line into a log, and what they say of themselves to
whoever shows it."""

import codecs
import os
import re
import select
import subprocess
import time
from typing import BinaryIO, Callable, Dict, List, Optional

from remote.agent.machine.programs import ENDED
from remote.agent.root.paths import read_end
from remote.agent.shared.text import redact

Hear = Callable[[Optional[str], Optional[List[int]]], None]
"""Takes a line of output, or the bytes that were downloaded and are to be."""
ASK_EVERY_S = 0.5
SHOWN = 256 << 10
"""Bytes of a log in which an error is looked for."""


class Commands:
    """`goes_on` is asked while a command runs; a command is ended where it says no, and where it
    says nothing itself for `limit_s`: a slow link takes its time."""

    def __init__(
        self, directory: str, log: str, hear: Hear, goes_on: Callable[[], bool], limit_s: float
    ) -> None:
        self.directory = directory
        self.log = os.path.join(directory, log)
        self.hear = hear
        self.goes_on = goes_on
        self.limit_s = limit_s
        self.child: Optional[subprocess.Popen[bytes]] = None
        self.exit_code: Optional[int] = None
        self.shown = True

    def run(self, argv: List[str], environment: Dict[str, str], shown: bool = True) -> int:
        """The exit code; ENDED where it said nothing for too long. `shown`: not only in the log."""
        self.shown = shown
        with open(self.log, "ab") as log:
            log.write(redact("$ " + " ".join(argv) + "\n").encode("utf-8", "replace"))
            log.flush()
            self.child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.directory,
            )
            try:
                late = self._follow(self.child, log)
            except BaseException:
                self.child.kill()  # it must not go on where nobody waits for it
                raise
            self.exit_code = ENDED if late else self.child.wait()
        return self.exit_code

    def _follow(self, child: "subprocess.Popen[bytes]", log: BinaryIO) -> bool:
        """Its output, line by line, until it ends. Whether it was ended for its silence."""
        assert child.stdout is not None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        rest, late = "", False
        end = time.monotonic() + self.limit_s
        while True:
            ready = select.select([child.stdout], [], [], ASK_EVERY_S)[0]
            late = late or time.monotonic() > end
            if late or not self.goes_on():
                child.kill()
            if not ready:
                continue
            end = time.monotonic() + self.limit_s
            data = os.read(child.stdout.fileno(), 64 << 10)
            lines = re.split(r"[\r\n]", rest + decoder.decode(data))
            rest = lines.pop()[-10_000:] if data else ""
            for line in lines:
                log.write(self._hear(line).encode("utf-8", "replace"))
            log.flush()
            if not data:
                return late

    def _hear(self, line: str) -> str:
        """What of a line goes to the log."""
        progress = re.match(r"Progress (\d{1,15}) of (\d{1,15})\s*$", line)
        if progress:
            self.hear(None, [int(progress.group(1)), int(progress.group(2))])
            return ""
        if not line.strip():
            return ""
        plain = redact(line)
        if self.shown and not line.startswith(("WARNING:", "[notice]")):
            self.hear(plain.strip()[:300], None)
        return plain + "\n"

    def stop(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()

    def output(self, start: int = 0) -> str:
        """The end of the log, from `start` on at the earliest."""
        return read_end(self.log, SHOWN, start)

    @property
    def written(self) -> int:
        return os.path.getsize(self.log) if os.path.exists(self.log) else 0
