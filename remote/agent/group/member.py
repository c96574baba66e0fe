"""Any host but the first one, to which it connects."""

import os
import socket
import threading
import time
from typing import Optional

from remote.agent.group.group import GREET_S, JOIN_S, Group, NotTogether, Stopped
from remote.agent.group.neighbours import Neighbours
from remote.agent.group.peers import HOST_LOST, SILENCE_S, Peer, Report, lacking


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
        addresses = self.nodes.address.split(",")
        late, why = time.monotonic() + JOIN_S, ""
        while time.monotonic() < late:
            for address in addresses:
                report = stopped()
                if report:
                    raise NotTogether(report)
                try:
                    place = (address, self.nodes.port)
                    peer = Peer(socket.create_connection(place, GREET_S))
                    key, host = self.nodes.key, os.uname().nodename
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
