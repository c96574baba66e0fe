"""What the kernel tells about processes; enough to know a process again after its number was given
to another."""

import os
import re
import subprocess
import time
from typing import Dict, Iterator, List, Optional, Tuple

from remote.agent.root.paths import list_names, read_bytes, read_text

HAS_PROC = os.path.isdir("/proc/self")
"""Linux; elsewhere `ps` is asked, whose seconds serve as clock ticks."""
STARTED = 19
"""The field of /proc/PID/stat, counted from the state on."""


def boot_id() -> str:
    """Changes with every boot; empty where the system does not tell."""
    return read_text("/proc/sys/kernel/random/boot_id").strip()


def start_time(pid: int) -> Optional[int]:
    """Clock ticks after boot at which `pid` started; None if there is no such process or it is a
    zombie."""
    fields = _stat(pid)
    return None if fields is None or fields[0][:1] in (b"Z", b"X") else int(fields[STARTED])


def child_start_time(pid: int) -> Optional[int]:
    """The same for a child that was not waited for yet: it may have ended already, and its number
    is still its own."""
    fields = _stat(pid)
    return None if fields is None else int(fields[STARTED])


def _stat(pid: int) -> Optional[List[bytes]]:
    """The fields from the state on."""
    if not HAS_PROC:
        return _by_ps().get(pid)
    return read_bytes(f"/proc/{pid}/stat").rpartition(b")")[2].split() or None


def is_same(pid: object, started: object) -> bool:
    """The process that was recorded still lives."""
    return (
        isinstance(pid, int)
        and pid > 0
        and start_time(pid) is not None
        and start_time(pid) == started
    )


def group_members(group: int) -> List[int]:
    """Living processes whose process group or session is `group`; a zombie is dead."""
    return [pid for pid, fields in _living() if int(fields[2]) == group or int(fields[3]) == group]


def children_of(parent: int) -> List[int]:
    """Living processes that `parent` has started."""
    return [pid for pid, fields in _living() if int(fields[1]) == parent]


def process_ids() -> List[int]:
    """All that are to be seen; none where there is no /proc."""
    return [int(name) for name in list_names("/proc") if name.isdigit()]


def _living() -> Iterator[Tuple[int, List[bytes]]]:
    """Every process but zombies, with its fields."""
    known = {pid: _stat(pid) for pid in process_ids()} if HAS_PROC else _by_ps()
    for pid, fields in known.items():
        if fields and fields[0][:1] not in (b"Z", b"X"):
            yield pid, fields


def _by_ps() -> Dict[int, List[bytes]]:
    """Every process with state, parent, group, the group once more for the session, and when it
    started, each where /proc has it."""
    words = ["ps", "-A", "-o", "pid=,stat=,ppid=,pgid=,lstart="]
    try:
        shown = subprocess.run(
            words, stdout=subprocess.PIPE, timeout=10, env={**os.environ, "LC_ALL": "C"}
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found = {}
    for line in shown.splitlines():
        pid, state, parent, group, *moment = line.split()
        began = time.mktime(time.strptime(b" ".join(moment).decode(), "%a %b %d %H:%M:%S %Y"))
        fields = [state, parent, group, group, *[b""] * (STARTED - 4), b"%d" % began]
        found[int(pid)] = fields
    return found


def reads_pipe(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/0").startswith("pipe:")
    except OSError:
        return False


def kernel_kills() -> Optional[int]:
    """How often the kernel killed something of this control group for lack of memory; None if it
    doesn't tell.

    The whole machine's count serves only where no group has one: it also counts what others lost.
    """
    for place in _memory_groups():
        count = _counter(place)
        if count is not None:
            return count
    return _counter("/proc/vmstat")


def _memory_groups() -> List[str]:
    """The files that may count the kills of our own group, for both versions of control groups."""
    places = []
    for line in read_text("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            places.append(f"/sys/fs/cgroup{path}/memory.events")
        elif "memory" in controllers.split(","):
            places.insert(0, f"/sys/fs/cgroup/memory{path}/memory.oom_control")
    # A container's own view begins at its group.
    return [*places, "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"]


def _counter(path: str) -> Optional[int]:
    found = re.search(r"^oom_kill (\d+)$", read_text(path), re.MULTILINE)
    return int(found[1]) if found else None
