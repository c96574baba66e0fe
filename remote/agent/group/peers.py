"""What the supervisors of one training on several hosts say to each other: a line of JSON each,
behind some of them a file's bytes."""

import json
import os
import re
import socket
import threading
from typing import Any, Dict, List, NamedTuple, Optional

from remote.agent.root.paths import hash_file, random_name, remove_file
from remote.agent.shared.states import Cause, Outcome, State

SILENCE_S = float(os.environ.get("REMOTE_SILENCE_S", "60"))
"""A network may be away for some seconds, and a training bears it; after so long it is over."""
LONGEST = 1 << 20
HOST_LOST: Cause = "host lost"
SCHEDULED = ("time limit", "preempted")
"""Ends that come to all hosts at once."""
ECHO = re.compile(
    r"gloo|NCCL|nccl\w+Error|DistBackendError|DistNetworkError|TCPStore|(closed|reset) by peer"
    r"|Broken pipe"
)
"""In the log of a process that has failed because it lost another one."""


class Report(NamedTuple):
    """How a host's part has ended. `again`: another attempt may mend it; `echo`: it ended because
    another one did."""

    state: State
    reason: Optional[str] = None
    cause: Optional[Cause] = None
    again: bool = False
    echo: bool = False

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.state, self.reason, self.cause)


def choose_verdict(reports: Dict[int, Report], names: List[str], is_trainer: bool) -> Report:
    """How all of it has ended, the same for every host. `reports` by rank, in the order in which
    they came: the first that is no echo tells why."""
    if is_trainer and reports[0].state == "finished":
        return reports[0]
    bad = [(rank, report) for rank, report in reports.items() if report.state != "finished"]
    if not bad:
        return reports[0]
    rank, report = min(bad, key=lambda pair: (pair[1].state != "stopped", pair[1].echo))
    if report.state == "stopped" or report.cause in (HOST_LOST, *SCHEDULED):
        return report
    return report._replace(reason=f"{names[rank]}: {report.reason}")


class Peer:
    """A connection to another supervisor. Raises OSError once it is of no use, socket.timeout where
    nothing was heard for long."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SILENCE_S)
        self.connection = connection
        self.stream = connection.makefile("rb")
        self.lock = threading.Lock()

    @property
    def own_address(self) -> str:
        return str(self.connection.getsockname()[0])

    def send(self, **message: Any) -> None:
        with self.lock:
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def try_to_send(self, **message: Any) -> None:
        """Who reads from it will see that it is gone."""
        try:
            self.send(**message)
        except OSError:
            pass

    def receive(self) -> Dict[str, Any]:
        while True:
            line = self.stream.readline(LONGEST)
            if not line.endswith(b"\n"):
                raise ConnectionResetError("the connection ended")
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ConnectionResetError("what came is no message")
            if "beat" not in message:
                return message

    def send_file(self, path: str, place: str) -> None:
        with self.lock, open(place, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = {"file": path, "size": size}
            self.connection.sendall(json.dumps(header).encode() + b"\n")
            self.connection.sendfile(file, count=size)

    def receive_file(self, place: str, size: int) -> None:
        """The file appears whole or not at all."""
        os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
        temporary = f"{place}.{random_name(4)}.tmp"
        try:
            with open(temporary, "wb") as file:
                while size:
                    data = self.stream.read(min(size, 1 << 20))
                    if not data:
                        raise ConnectionResetError("the connection ended")
                    file.write(data)
                    size -= len(data)
            os.replace(temporary, place)
        except BaseException:
            remove_file(temporary)
            raise

    def end(self) -> None:
        """No more is said; what was said still arrives."""
        try:
            self.connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self.stream.close()
        self.connection.close()


def describe_file(directory: str, path: str) -> Optional[List[Any]]:
    """Path, size and hash; None where there is no such file."""
    place = os.path.join(directory, path)
    try:
        return [path, os.path.getsize(place), hash_file(place)]
    except OSError:
        return None


def lacking(directory: str, offered: List[List[Any]]) -> List[str]:
    """Of the files that are offered, those that are not here as they are there."""
    for row in offered:
        parts = str(row[0]).split("/")
        if os.path.isabs(str(row[0])) or any(part in ("", ".", "..") for part in parts):
            raise ConnectionResetError(f"not a path inside the run: {row[0]!r:.80}")
    return [str(row[0]) for row in offered if describe_file(directory, str(row[0])) != row]
