"""One at a time, of all processes that share a disk.

On one host flock sees to it, which the kernel frees with its holder. A disk that hosts share may
have no flock (ENOSYS), or one for each host (Lustre's localflock, GPFS, BeeGFS). There the holder
also has the highest of the files NAME.1, NAME.2, …, each made exclusively, which it touches now and
then. That is over once it says so, where its host's own flock is free, or without a touch for a
minute.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

from remote.agent.root.disk import is_shared

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
SILENT_S = float(os.environ.get("REMOTE_LOCK_SILENT_S", "60"))
BEAT_S = SILENT_S / 6
LOOK_S = min(1.0, BEAT_S / 4)
"""Between two looks at what another host has."""
KEPT = 8
"""Old files that stay, for those who have just read that one is over and make the next."""
OVER = "over"
NO_FLOCK = os.environ.get("REMOTE_NO_FLOCK") == "1"
"""In tests: as on a disk without flock, which hosts share."""


class Lock:
    """Of `path`, which need not exist. `close` frees it."""

    def __init__(self, path: str) -> None:
        self.file, place = open_lock(path)
        shared = place != path or is_shared(path)
        self.turn = Turn(path, place) if shared else None

    def take(self) -> bool:
        """Without waiting; False where somebody has it."""
        if not self._take_here():
            return False
        if self.turn is None or self.turn.take():
            return True
        fcntl.flock(self.file, fcntl.LOCK_UN)
        return False

    def wait(self) -> None:
        """Take it, however long that lasts."""
        fcntl.flock(self.file, fcntl.LOCK_EX)
        while self.turn is not None and not self.turn.take():
            time.sleep(LOOK_S)

    def _take_here(self) -> bool:
        """On this host."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def is_free(self) -> bool:
        if not self._take_here():
            return False
        free = self.turn is None or self.turn.is_free()
        fcntl.flock(self.file, fcntl.LOCK_UN)
        return free

    def sign(self, who: str) -> None:
        """Of its holder, for those who wait."""
        with contextlib.suppress(OSError):  # on a full disk it is held all the same
            os.ftruncate(self.file, 0)
            os.pwrite(self.file, json.dumps({"who": who, "since": time.time()}).encode(), 0)

    def holder(self) -> Dict[str, Any]:
        if self.turn is not None and self.turn.other:
            return {"who": self.turn.other, "since": None}
        try:
            value = json.loads(os.pread(self.file, 4096, 0))
        except ValueError:
            return {}
        known = value if isinstance(value, dict) else {}
        return {name: known.get(name) for name in ("who", "since")}

    def hand_over(self) -> None:
        """To a process that has inherited `file` and was told of `record`: see `held`."""
        if self.turn is not None:
            self.turn.beats.set()
            self.turn.record = ""
        self.close()

    @property
    def record(self) -> str:
        """The file to touch; empty where flock is enough."""
        return self.turn.record if self.turn is not None else ""

    def close(self) -> None:
        if self.turn is not None:
            self.turn.give_up()
        os.close(self.file)


class Turn:
    """Among hosts. Its methods are called by who has `flock`, the file that tells of this host's
    own processes: so what another of them has left is over. `other`: the host that has it."""

    def __init__(self, path: str, flock: str) -> None:
        self.path = path
        self.host = os.uname().nodename
        self.own = f"{self.host} {flock}"
        self.record = self.other = ""
        self.beats = threading.Event()
        self.seen: Optional[Tuple[int, int]] = None
        self.looked = self.silent_s = 0.0

    def take(self) -> bool:
        if self.other and time.monotonic() - self.looked < LOOK_S:
            return False
        number = self._last() + 1
        record = self._place(number)
        if not self._is_over(number - 1):
            return False
        try:
            with open(record, "x") as file:
                file.write(self.own)
        except FileExistsError:
            return False
        if self._last() != number:
            # Whoever saw the same one end has been through all of the next by now.
            os.unlink(record)
            return False
        for old in self._numbers()[:-KEPT]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._place(old))
        self.record, self.other, self.beats = record, "", keep_alive(record)
        return True

    def is_free(self) -> bool:
        return self._is_over(self._last())

    def give_up(self) -> None:
        if self.record:
            self.beats.set()
            declare_over(self.record)
            self.record = ""

    def _is_over(self, number: int) -> bool:
        """Only time that passes here, look by look, counts as silence: clocks may differ, and a
        disk that hangs silences everybody."""
        now, place = time.monotonic(), self._place(number)
        passed, self.looked = min(now - self.looked, 2 * LOOK_S), now
        try:
            with open(place) as file:
                said, touched = file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return number == 0
        if said in (OVER, self.own):
            return True
        self.silent_s = self.silent_s + passed if self.seen == (number, touched) else 0.0
        self.seen, self.other = (number, touched), said.partition(" ")[0] or "somebody"
        return self.silent_s > SILENT_S

    def _last(self) -> int:
        return max(self._numbers(), default=0)

    def _numbers(self) -> List[int]:
        folder, name = os.path.split(self.path)
        ends = [entry[len(name) + 1 :] for entry in os.listdir(folder) if entry.startswith(name)]
        return sorted(int(end) for end in ends if end.isdigit())

    def _place(self, number: int) -> str:
        return f"{self.path}.{number}"


def open_lock(path: str) -> Tuple[int, str]:
    """An open file whose flock stands for `path`, and which file that is: itself, or one on this
    host's own disk."""
    file = _open(path)
    try:
        if NO_FLOCK:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(file, fcntl.LOCK_UN)  # a question: nothing is locked by it
    except OSError as error:
        os.close(file)
        if error.errno not in NO_LOCKS:
            raise
        name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:24]
        place = os.path.join(tempfile.gettempdir(), f".lock-{os.getuid()}-{name}")
        return _open(place), place
    return file, path


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def keep_alive(record: str) -> threading.Event:
    """Touch it until the event is set, or this process ends."""
    enough = threading.Event()

    def beat() -> None:
        while not enough.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(record)

    threading.Thread(target=beat, daemon=True).start()
    return enough


def declare_over(record: str) -> None:
    with contextlib.suppress(OSError), open(record, "w") as file:
        file.write(OVER)


@contextlib.contextmanager
def held(file: int, record: str) -> Iterator[None]:
    """What `hand_over` has given to this process: until the end of the block, or its own."""
    # What is started from here must not hold it: it tells whether this process lives.
    os.set_inheritable(file, False)
    enough = keep_alive(record) if record else None
    try:
        yield
    finally:
        if enough is not None:
            enough.set()
            declare_over(record)


def hold(arguments: List[str]) -> int:
    """`hold FILE RECORD COMMAND…`: a lock that is held while a command runs which knows nothing of
    it. The command inherits the file: where this process is killed, it still has that."""
    file, record, *command = arguments
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with held(int(file), record):
        return subprocess.run(command, pass_fds=[int(file)]).returncode
