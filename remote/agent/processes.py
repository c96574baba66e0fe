"""What the kernel tells about processes; enough to know a process again after its number was given to another."""

import os
from typing import List, Optional


def start_time(pid: int) -> Optional[int]:
    """Clock ticks after boot at which `pid` started; None if there is no such process or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def is_same(pid: object, started: object) -> bool:
    """The process that was recorded still lives."""
    return isinstance(pid, int) and pid > 0 and start_time(pid) is not None and start_time(pid) == started


def group_members(group: int) -> List[int]:
    """Living processes whose process group or session is `group`; a zombie is dead."""
    members = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] not in (b"Z", b"X") and (int(fields[2]) == group or int(fields[3]) == group):
            members.append(int(name))
    return members


def kernel_kills() -> Optional[int]:
    """How often the kernel killed something for lack of memory, here or in this control group; None if it doesn't tell."""
    total = None
    for path, key in ((_own_memory_events(), "oom_kill"), ("/proc/vmstat", "oom_kill")):
        try:
            with open(path) as file:
                for line in file:
                    name, _, value = line.partition(" ")
                    if name == key:
                        total = (total or 0) + int(value)
        except (OSError, ValueError):
            continue
    return total


def _own_memory_events() -> str:
    try:
        with open("/proc/self/cgroup") as file:
            for line in file:
                if line.startswith("0::"):
                    return "/sys/fs/cgroup" + line[3:].strip() + "/memory.events"
    except OSError:
        pass
    return "/sys/fs/cgroup/memory.events"
