"""What networks this host is on, and whether another host can talk to it: asked before a training
on several hosts begins, which would only hang."""

import fcntl
import os
import socket
import struct
import threading
from typing import Any, Dict, List, Optional

from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import read_text

FLAGS, ADDRESS, NETMASK, MTU = 0x8913, 0x8915, 0x891B, 0x8921
"""Linux' SIOCGIF… numbers."""
UP, LOOPBACK = 0x1, 0x8
LARGE = 256 << 10
"""Bytes each way: no path carries them in packets that are too large for it."""
EXCHANGE_S = 8.0
LISTENING: Dict[str, socket.socket] = {}


def list_addresses() -> List[Dict[str, Any]]:
    """The IPv4 addresses of this host but 127.0.0.1, the fastest interface first."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                row = _look_at(asked, name)
            except OSError:
                continue
            if row is not None:
                found.append(row)
    return sorted(found, key=lambda row: (-int(row["speed"]), row["interface"]))


def _look_at(asked: socket.socket, name: str) -> Optional[Dict[str, Any]]:
    """Raises OSError for an interface without an address."""

    def ask(number: int) -> bytes:
        return fcntl.ioctl(asked.fileno(), number, struct.pack("256s", os.fsencode(name)[:15]))

    flags = struct.unpack_from("H", ask(FLAGS), 16)[0]
    if not flags & UP or flags & LOOPBACK:
        return None
    return {
        "interface": name,
        "address": socket.inet_ntoa(ask(ADDRESS)[20:24]),
        "prefix": bin(struct.unpack_from("!I", ask(NETMASK), 20)[0]).count("1"),
        "mtu": struct.unpack_from("i", ask(MTU), 16)[0],
        "speed": _speed(name),
    }


def _speed(name: str) -> int:
    """Mbit/s, 0 where it is not told."""
    told = read_text(f"/sys/class/net/{name}/speed").strip()
    return int(told) if told.isdigit() else 0


def interface_of(address: str) -> Optional[str]:
    if address.startswith("127."):
        return "lo"
    return next((row["interface"] for row in list_addresses() if row["address"] == address), None)


@operation("network_addresses")
def network_addresses(call: Call) -> Dict[str, Any]:
    """`ssh`: at which address this login has come in."""
    came = os.environ.get("SSH_CONNECTION", "").split()
    return {"addresses": list_addresses(), "ssh": came[2] if len(came) == 4 else None}


@operation("network_listen")
def network_listen(call: Call, address: str, token: str) -> Dict[str, Any]:
    """Answer `network_connect` of other hosts from now on, until `network_close`."""
    try:
        server = socket.create_server((address, 0))
    except OSError as error:
        raise Refusal("ServerUnfit", f"{address} can't be listened at: {error.strerror}") from None
    LISTENING[token] = server
    threading.Thread(target=_serve, args=(server, token), daemon=True).start()
    return {"port": server.getsockname()[1]}


@operation("network_close")
def network_close(call: Call, token: str) -> Dict[str, Any]:
    server = LISTENING.pop(token, None)
    if server is not None:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
    return {}


def _serve(server: socket.socket, token: str) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, token), daemon=True).start()


def _answer(connection: socket.socket, token: str) -> None:
    connection.settimeout(EXCHANGE_S)
    with connection, connection.makefile("rwb") as stream:
        try:
            if stream.readline(len(token) + 2) == token.encode() + b"\n":
                _say(stream, token.encode() + b"\n")
                _hear(stream)
                _say(stream, b"all\n")
                _say(stream, bytes(LARGE))
        except OSError:
            pass


def _say(stream: Any, data: bytes) -> None:
    stream.write(data)
    stream.flush()


def _hear(stream: Any) -> None:
    if len(stream.read(LARGE)) < LARGE:
        raise OSError("the connection ended")


@operation("network_connect")
def network_connect(call: Call, source: str, address: str, port: int, token: str) -> Dict[str, Any]:
    """Exchange a little, then much, with a host that listens. `failed`: at what: port (no
    connection), host (another one answers), out or back (much does not arrive); None: it went."""
    stage = "port"
    try:
        with socket.create_connection((address, port), EXCHANGE_S, (source, 0)) as connection:
            stage = "host"
            with connection.makefile("rwb") as stream:
                _say(stream, token.encode() + b"\n")
                if stream.readline(len(token) + 2) != token.encode() + b"\n":
                    raise OSError("it is not the host that was meant")
                stage = "out"
                _say(stream, bytes(LARGE))
                if stream.readline(8) != b"all\n":
                    raise OSError("the connection ended")
                stage = "back"
                _hear(stream)
    except OSError as error:
        return {"failed": stage, "why": error.strerror or str(error)}
    return {"failed": None, "why": ""}
