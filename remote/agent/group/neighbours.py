"""The hosts of one training listen to each other beside the first one: two of them can lose each
other where both still reach the first host, and the training would hang without end."""

import hmac
import socket
import threading
from typing import Any, Callable, Dict, List

from remote.agent.group.peers import Peer

GREET_S, MEET_S = 5.0, 120.0


class Neighbours:
    """Those of the other hosts that could be met are added to `peers`, which somebody else keeps
    talking; `lost` is told of one that was silent for too long. Who has ended is the first host's
    to see."""

    def __init__(
        self, address: str, key: str, peers: Dict[int, Peer], lost: Callable[[int], None]
    ) -> None:
        self.door = socket.create_server((address, 0))
        self.port = int(self.door.getsockname()[1])
        self.key, self.peers, self.lost = key, peers, lost

    def meet(self, rank: int, doors: Dict[str, List[Any]]) -> None:
        """Knock at the doors of lower ranks, and wait for the higher ones. `doors`: address and
        port by rank."""
        for number in range(1, rank):
            address, port = doors[str(number)]
            try:
                peer = Peer(socket.create_connection((str(address), int(port)), GREET_S))
                peer.send(meet=rank, key=self.key)
            except OSError:
                continue
            self._hear(number, peer)
        with self.door:
            self.door.settimeout(MEET_S)
            for _ in range(len(doors) - rank):
                try:
                    peer = Peer(self.door.accept()[0])
                    message = peer.receive()
                except (OSError, ValueError):
                    continue
                if hmac.compare_digest(str(message.get("key")), self.key):
                    self._hear(int(message["meet"]), peer)

    def _hear(self, rank: int, peer: Peer) -> None:
        def hear() -> None:
            try:
                while True:
                    peer.receive()
            except socket.timeout:
                self.lost(rank)
            except (OSError, ValueError):
                pass

        self.peers[rank] = peer
        threading.Thread(target=hear, daemon=True).start()
