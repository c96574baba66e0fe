"""One training on several hosts, as its supervisors see it: the first host's waits for the others,
gives them the newest checkpoint, says when to start, and tells all of them how it ended.

They talk beside the training's own connections, which may hang for minutes where a host is gone.
"""

import os
import socket
import threading
from typing import Any, Callable, Dict, List, NoReturn, Optional

from remote.agent.group.peers import HOST_LOST, SCHEDULED, SILENCE_S, Peer, Report
from remote.agent.machine.network import interface_of
from remote.agent.shared.run_records import Asked

JOIN_S = float(os.environ.get("REMOTE_JOIN_S", "120"))
BEAT_S = SILENCE_S / 12
GREET_S = 5.0
PATIENCE_S = 5.0
"""What is left of a training that has lost a host is given so long: it can't agree on a save."""
Stopped = Callable[[], Optional[Report]]


class NotTogether(Exception):
    """The hosts did not come together, or one has ended it before it began."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.reason)
        self.report = report


class Group:
    """This host's part. `home`: the run's own directory, which hosts may share; `ending`: why its
    process has to end now, and `patience_s` how soon (None: as for a stop)."""

    def __init__(self, home: str, asked: Asked) -> None:
        self.home, self.asked, self.nodes = home, asked, asked.nodes
        self.rank, self.count = self.nodes.rank, self.nodes.count
        self.names = [*self.nodes.hosts] or [f"node {rank}" for rank in range(self.count)]
        self.variables: Dict[str, str] = {}
        # Of the run, as the first host counts them.
        self.attempt = 1
        self.begin()

    def join(self, stopped: Stopped) -> None:
        """Come together with the others. Raises NotTogether."""
        raise NotImplementedError

    def tell(self, report: Report) -> None:
        """This host's process is being ended: so must be the others'."""
        raise NotImplementedError

    def agree(self, own: Report, restarts_left: bool, stopped: Stopped) -> Report:
        """How all of it has ended, the same on every host; once all have."""
        raise NotImplementedError

    def wait(self, over: Callable[[], bool], stopped: Stopped) -> None:
        """This host's process has ended. A stop is for the others'."""
        while not over():
            with self.news:
                if not over():
                    self.news.wait(1)
            report = stopped()
            if report and self.ending is None:
                self.tell(report)

    def end_members(self) -> None:
        """Those that this host has started, once no more attempt follows."""

    def begin(self) -> None:
        """Of a new attempt."""
        self.ending: Optional[Report] = None
        self.patience_s: Optional[float] = None
        self.peers: Dict[int, Peer] = {}
        self.threads: List[threading.Thread] = []
        self.news = threading.Condition()
        self.over = threading.Event()
        threading.Thread(target=self.beat, args=(self.over,), daemon=True).start()

    def run_aside(self, listen: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=listen, args=arguments, daemon=True)
        thread.start()
        self.threads.append(thread)

    def beat(self, over: threading.Event) -> None:
        while not over.wait(BEAT_S):
            for peer in list(self.peers.values()):
                peer.try_to_send(beat=1)

    def end(self, report: Report) -> None:
        """Of this host's process; the first reason counts."""
        with self.news:
            if self.ending is None:
                saves = report.state == "stopped" or report.cause in ("disk full", *SCHEDULED)
                self.patience_s = None if saves else PATIENCE_S
                self.ending = report

    def set_variables(self, address: str, port: int, own_address: str) -> None:
        interface = interface_of(own_address)
        self.variables = {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "NODE_RANK": str(self.rank),
            "NNODES": str(self.count),
        }
        if interface:
            # Else gloo takes the address that the host's own name has, often 127.0.1.1.
            self.variables.update(GLOO_SOCKET_IFNAME=interface, NCCL_SOCKET_IFNAME=f"={interface}")

    def lost(self, rank: int, error: BaseException) -> Report:
        name = self.names[rank]
        if isinstance(error, socket.timeout):
            why = f"nothing was heard of {name} for {SILENCE_S:.0f} s: it is off, or its network"
        else:
            why = f"{name} is gone: the host, or its supervisor, was killed"
        return Report("failed", why, HOST_LOST, again=True)

    def fail(self, reason: str) -> NoReturn:
        raise NotTogether(Report("failed", reason, HOST_LOST))

    def close(self) -> None:
        """What was said last still arrives."""
        self.over.set()
        for peer in self.peers.values():
            peer.end()
        for thread in self.threads:
            thread.join(3)
        for peer in self.peers.values():
            peer.close()
