"""The host of rank 0: gives the others the newest checkpoint, says when to start, and tells all of
them how it ended."""

import hmac
import os
import socket
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional

from remote.agent.group.group import GREET_S, JOIN_S, Group, NotTogether, Stopped
from remote.agent.group.peers import SILENCE_S, Peer, Report, choose_verdict, describe_file
from remote.agent.launchers.slurm_queue import find
from remote.agent.machine.network import list_addresses
from remote.agent.root import program
from remote.agent.shared.run_records import Asked
from remote.agent.training.surroundings import checkpoints_of


class First(Group):
    """The host of rank 0, to which the others connect."""

    def __init__(self, home: str, asked: Asked, token: str) -> None:
        super().__init__(home, asked)
        self.token = token
        if asked.by_slurm:
            self.nodes = self.nodes._replace(key=token)
        self.port = self.nodes.port
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
        try:
            server = socket.create_server((self.nodes.address, self.port))
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
        if not self.asked.by_slurm or self.srun is not None:
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
            right = hmac.compare_digest(str(message.get("key")), self.nodes.key)
            if not right or type(rank) is not int or not 0 < rank < self.count:
                raise ConnectionResetError("it is none of ours")
        except (OSError, ValueError):
            peer.close()
            raise ConnectionResetError from None
        connection.settimeout(SILENCE_S)
        if not self.nodes.hosts:
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
        verdict = choose_verdict(self.reports, self.names, self.asked.is_trainer)
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
