"""Who else is at work on this machine: other people, and what goes on under this very login."""

import os
import time
from typing import Iterator, List, NamedTuple, Tuple

from remote.agent.machine.account import name_of
from remote.agent.machine.gpus import look_at_gpus
from remote.agent.machine.processes import process_ids
from remote.agent.root.paths import read_bytes

FIRST_PERSON, NOBODY = int(os.environ.get("REMOTE_FIRST_PERSON", "1000")), 65534
"""User numbers below are the system's own."""
SERVES = b"import sys,base64,zlib;exec("
"""Begins what every agent that serves a laptop is started with."""


class Process(NamedTuple):
    pid: int
    argv: List[bytes]


def other_people() -> List[str]:
    """Names of other people whose processes run here."""
    users = {user for _, user in _processes()}
    return sorted(
        name_of(user) for user in users if FIRST_PERSON <= user < NOBODY and user != os.getuid()
    )


def own_processes() -> List[Process]:
    """Of this login: the same user with the same home; not the one that asks."""
    found = []
    for pid, user in _processes():
        if user == os.getuid() and pid != os.getpid() and _home_of(pid) == os.environ.get("HOME"):
            found.append(Process(pid, read_bytes(f"/proc/{pid}/cmdline").split(b"\0")))
    return found


def roots_of(processes: List[Process], command: bytes) -> List[str]:
    """What agents that were started for `command` (supervise, guard) were given to work on."""
    return [
        os.fsdecode(process.argv[process.argv.index(command) + 1])
        for process in processes
        if command in process.argv[1:-1]
        and process.argv[process.argv.index(command) - 1].endswith(b".pyz")
    ]


def at_work(processes: List[Process], idle_s: float) -> List[str]:
    """What would be lost with the machine, each in words. A terminal that nobody has used for
    `idle_s` was left behind."""
    people = other_people()
    found = [f"processes of {', '.join(people)}"] if people else []
    if any(len(each.argv) > 4 and each.argv[4].startswith(SERVES) for each in processes):
        found.append("a command of fab that is connected")
    found += [
        f"the terminal {name}, last used {used_s / 60:.0f} min ago"
        for name, used_s in sorted(_terminals(processes))
        if used_s < idle_s
    ]
    for gpu in look_at_gpus().gpus:
        found += [
            f"gpu {gpu.index}: {each.name} ({each.pid}) of {each.user}"
            for each in gpu.processes
            if each.user  # another container's are not to be seen, and live on
        ]
    return found


def _terminals(processes: List[Process]) -> Iterator[Tuple[str, float]]:
    """Each with how long nobody has typed there, and nothing was printed."""
    places = set()
    for process in processes:
        try:
            places.add(os.readlink(f"/proc/{process.pid}/fd/0"))
        except OSError:
            continue
    for place in places:
        if place.startswith("/dev/pts/"):
            try:
                status = os.stat(place)
            except OSError:
                continue
            yield place[len("/dev/") :], time.time() - max(status.st_atime, status.st_mtime)


def _processes() -> Iterator[Tuple[int, int]]:
    """(pid, uid) of all that are to be seen."""
    for pid in process_ids():
        try:
            yield pid, os.stat(f"/proc/{pid}").st_uid
        except OSError:
            continue


def _home_of(pid: int) -> "str | None":
    for variable in read_bytes(f"/proc/{pid}/environ").split(b"\0"):
        if variable.startswith(b"HOME="):
            return os.fsdecode(variable[len(b"HOME=") :])
    return None
