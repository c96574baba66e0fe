"""One training on several hosts, as its supervisors see it: the first host's waits for the others,
gives them the newest checkpoint, says when to start, and tells all of them how it ended.

They talk beside the training's own connections, which may hang for minutes where a host is gone.
"""

import hmac
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List, NoReturn, Optional

from remote.agent.launchers.slurm_queue import find
from remote.agent.machine.network import interface_of, list_addresses
from remote.agent.root import program
from remote.agent.supervisor.neighbours import Neighbours
from remote.agent.supervisor.peers import (
    HOST_LOST,
    SCHEDULED,
    SILENCE_S,
    Peer,
    Report,
    choose_verdict,
    describe_file,
    lacking,
)
from remote.agent.training.surroundings import checkpoints_of

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

    def __init__(self, home: str, asked: Dict[str, Any]) -> None:
        self.home, self.asked = home, asked
        self.nodes: Dict[str, Any] = dict(asked["nodes"])
        self.rank, self.count = int(self.nodes["rank"]), int(self.nodes["count"])
        known = [str(name) for name in self.nodes.get("hosts") or ()]
        self.names = known or [f"node {rank}" for rank in range(self.count)]
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


class First(Group):
    """The host of rank 0, to which the others connect."""

    def __init__(self, home: str, asked: Dict[str, Any], token: str) -> None:
        super().__init__(home, asked)
        self.token = token
        if asked.get("launcher") == "slurm":
            self.nodes["key"] = token
        self.port = int(self.nodes.get("port") or 0)
        self.srun: Optional[subprocess.Popen[bytes]] = None

    def begin(self) -> None:
        super().begin()
        self.reports: Dict[int, Report] = {}
        # Where the others find each other: address and port by rank.
        self.doors: Dict[str, List[Any]] = {}

    def join(self, stopped: Stopped) -> None:
        try:
            self.let_in(stopped)
            paths = checkpoints_of(self.home, self.asked)
            offered = list(filter(None, [describe_file(self.home, path) for path in paths]))
            for rank, peer in sorted(self.peers.items()):
                try:
                    self.hand_over(peer, offered)
                except OSError as error:
                    raise NotTogether(self.lost(rank, error)) from None
            address = next(iter(self.peers.values())).own_address
            with socket.create_server((address, 0)) as free:
                port = free.getsockname()[1]
        except NotTogether as problem:
            self.end(problem.report)
            raise
        self.set_variables(address, port, address)
        for rank, peer in self.peers.items():
            go = {"address": address, "port": port, "names": self.names, "attempt": self.attempt}
            peer.try_to_send(go=dict(go, doors=self.doors))
            self.run_aside(self.listen, rank, peer)

    def let_in(self, stopped: Stopped) -> None:
        place = (str(self.nodes.get("address") or ""), self.port)
        try:
            server = socket.create_server(place)
        except OSError as error:
            self.fail(f"port {self.port} was taken meanwhile ({error.strerror}): start it again")
        with server:
            server.settimeout(0.25)
            self.port = server.getsockname()[1]
            self.call_members()
            late = time.monotonic() + JOIN_S
            while len(self.peers) < self.count - 1:
                report = stopped()
                if report:
                    raise NotTogether(report)
                if time.monotonic() > late:
                    missing = [self.names[r] for r in range(1, self.count) if r not in self.peers]
                    self.fail(f"{', '.join(missing)} did not come within {JOIN_S:.0f} s")
                if self.srun is not None and self.srun.poll() is not None:
                    self.fail("srun could not start it on the other nodes: see slurm.log")
                try:
                    self.greet(server.accept()[0])
                except OSError:
                    continue

    def call_members(self) -> None:
        """Under Slurm this supervisor is the batch script, and starts the others on their nodes."""
        if self.asked.get("launcher") != "slurm" or self.srun is not None:
            return
        others = self.count - 1
        addresses = [row["address"] for row in list_addresses()] + ["127.0.0.1"]
        words = [str(find("srun") or "srun"), f"--nodes={others}", f"--ntasks={others}"]
        words += ["--ntasks-per-node=1", "--relative=1", "--kill-on-bad-exit=0", "--wait=0"]
        if "SLURM_CPUS_PER_TASK" in os.environ:
            words.append(f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}")
        own = ["supervise", self.home, self.token, ",".join(addresses), str(self.port)]
        words += program.command(sys.argv[0], *own)
        self.srun = subprocess.Popen(words, stdin=subprocess.DEVNULL)

    def greet(self, connection: socket.socket) -> None:
        """Somebody else's connection is closed; raises OSError."""
        peer = Peer(connection)
        connection.settimeout(GREET_S)
        try:
            message = peer.receive()
            rank = message.get("join")
            right = hmac.compare_digest(str(message.get("key")), str(self.nodes["key"]))
            if not right or type(rank) is not int or not 0 < rank < self.count:
                raise ConnectionResetError("it is none of ours")
        except (OSError, ValueError):
            peer.close()
            raise ConnectionResetError from None
        connection.settimeout(SILENCE_S)
        if not self.nodes.get("hosts"):
            self.names[0] = os.uname().nodename
            self.names[rank] = str(message.get("host"))
        peer.send(here=True)
        self.peers[rank] = peer
        self.doors[str(rank)] = [connection.getpeername()[0], message["door"]]

    def hand_over(self, peer: Peer, offered: List[List[Any]]) -> None:
        """The newest checkpoint, where the other host lacks it."""
        peer.send(offered=offered)
        for path in peer.receive().get("wanted") or ():
            if any(row[0] == path for row in offered):
                peer.send_file(path, os.path.join(self.home, path))
        if "ready" not in peer.receive():
            raise ConnectionResetError("it is not ready")

    def listen(self, rank: int, peer: Peer) -> None:
        try:
            while True:
                message = peer.receive()
                if "ended" in message:
                    self.take(rank, Report(*message["ended"]))
                elif "stop" in message:
                    self.end(Report(*message["stop"]))
        except (OSError, ValueError, TypeError) as error:
            self.take(rank, self.lost(rank, error))

    def end(self, report: Report) -> None:
        super().end(report)
        for peer in self.peers.values():
            peer.try_to_send(end=list(report))

    def tell(self, report: Report) -> None:
        self.end(report)

    def take(self, rank: int, report: Report) -> None:
        with self.news:
            if rank in self.reports:
                return
            self.reports[rank] = report
            self.news.notify_all()
        if report.state != "finished":
            self.end(report)

    def agree(self, own: Report, restarts_left: bool, stopped: Stopped) -> Report:
        self.take(0, own)
        self.wait(lambda: len(self.reports) == self.count, stopped)
        verdict = choose_verdict(self.reports, self.names, self.asked.get("finish") == "summary")
        verdict = verdict._replace(again=verdict.again and restarts_left)
        for peer in self.peers.values():
            peer.try_to_send(verdict=list(verdict))
        return verdict

    def end_members(self) -> None:
        """Slurm's step is to end by itself."""
        if self.srun is not None:
            try:
                self.srun.wait(15)
            except subprocess.TimeoutExpired:
                self.srun.terminate()


class Member(Group):
    """Any other host."""

    def begin(self) -> None:
        super().begin()
        self.verdict: Optional[Report] = None
        self.alone = False

    def join(self, stopped: Stopped) -> None:
        peer = self.peers[0] = self.connect(stopped)
        try:
            while True:
                message = peer.receive()
                if "offered" in message:
                    wanted = lacking(self.home, message["offered"])
                    peer.send(wanted=wanted)
                    for _ in wanted:
                        header = peer.receive()
                        place = os.path.join(self.home, str(header["file"]))
                        peer.receive_file(place, int(header["size"]))
                    peer.send(ready=True)
                elif "end" in message:
                    raise NotTogether(Report(*message["end"]))
                elif "go" in message:
                    break
        except (OSError, ValueError, KeyError) as error:
            raise NotTogether(self.lost(0, error)) from None
        go = message["go"]
        self.names, self.attempt = [str(name) for name in go["names"]], int(go["attempt"])
        self.set_variables(str(go["address"]), int(go["port"]), peer.own_address)
        self.run_aside(self.listen, peer)
        meeting = (self.rank, dict(go["doors"]))
        threading.Thread(target=self.neighbours.meet, args=meeting, daemon=True).start()

    def connect(self, stopped: Stopped) -> Peer:
        addresses = str(self.nodes["address"]).split(",")
        late, why = time.monotonic() + JOIN_S, ""
        while time.monotonic() < late:
            for address in addresses:
                report = stopped()
                if report:
                    raise NotTogether(report)
                try:
                    place = (address, int(self.nodes["port"]))
                    peer = Peer(socket.create_connection(place, GREET_S))
                    key, host = str(self.nodes["key"]), os.uname().nodename
                    self.neighbours = Neighbours(peer.own_address, key, self.peers, self.miss)
                    peer.send(join=self.rank, key=key, host=host, door=self.neighbours.port)
                    if "here" in peer.receive():
                        return peer
                except (OSError, ValueError) as error:
                    why = str(getattr(error, "strerror", None) or error)
            time.sleep(0.5)
        self.fail(f"{self.names[0]} was not there within {JOIN_S:.0f} s ({why})")

    def listen(self, peer: Peer) -> None:
        try:
            while True:
                message = peer.receive()
                if "verdict" in message:
                    break
                if "end" in message:
                    self.end(Report(*message["end"]))
            verdict = Report(*message["verdict"])
        except (OSError, ValueError, TypeError) as error:
            verdict, self.alone = self.lost(0, error)._replace(again=False), True
            self.end(verdict)
        with self.news:
            self.verdict = verdict
            self.news.notify_all()

    def miss(self, rank: int) -> None:
        """Another of the further hosts, of which the first one may still hear."""
        own, other = self.names[self.rank], self.names[rank]
        why = f"{own} heard nothing of {other} for {SILENCE_S:.0f} s: the network between them"
        self.tell(Report("failed", why, HOST_LOST, again=True))

    def tell(self, report: Report) -> None:
        self.end(report)
        self.peers[0].try_to_send(stop=list(report))

    def agree(self, own: Report, restarts_left: bool, stopped: Stopped) -> Report:
        self.peers[0].try_to_send(ended=list(own))
        self.wait(lambda: self.verdict is not None, stopped)
        assert self.verdict is not None
        own_fault = self.alone and own.state == "failed" and not own.echo
        return own._replace(again=False) if own_fault else self.verdict
