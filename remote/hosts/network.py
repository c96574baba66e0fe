"""The network on which the hosts of one training talk: chosen from what each of them has, and
proved between every two of them before anything starts."""

from __future__ import annotations

import ipaddress
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from remote.errors import ServerUnfit
from remote.link.answers import Address, Addresses, Exchanged, ListenedEnough, Listening
from remote.link.session import Session

LOOPBACK = Address("lo", "127.0.0.1", 8, 65536)
PORT = (
    "{there} can't be reached from {here} ({why}): a firewall, or no route",
    "allow TCP between these hosts on all ports above 1023, as torch.distributed needs it",
)
HOST = (
    "another machine answers at {there} when {here} asks",
    "give these hosts addresses of their own",
)
LARGE = (
    "small packets get {way}, 256 KiB do not ({why}): packets as large as the interfaces allow (MTU"
    " {mtu}) get lost on the way",
    "set one MTU on all of that network: ip link set INTERFACE mtu 1500",
)


@dataclass(frozen=True)
class Network:
    """An address for each host, in their order; `port`: at the first one, where nobody listens
    now."""

    addresses: tuple[Address, ...]
    port: int = 0


def choose_networks(hosts: Sequence[Addresses], one_machine: bool = False) -> list[Network]:
    """Those that may do, the likeliest first: where each host has an address of its own, in the
    order of the first host's interfaces; then where the logins come in.

    `one_machine`: they may be several logins of one, which talks to itself.
    """
    by_network = [
        {ipaddress.ip_interface(f"{a.address}/{a.prefix}").network: a for a in host.addresses}
        for host in hosts
    ]
    found = [
        tuple(known[network] for known in by_network)
        for network in by_network[0]
        if all(network in known for known in by_network)
    ]
    known = [{a.address: a for a in host.addresses} for host in hosts]
    came = [known[n].get(host.ssh or "") for n, host in enumerate(hosts)]
    entered = tuple(address for address in came if address is not None)
    found += [entered] if len(entered) == len(hosts) and entered not in found else []
    own = [row for row in found if len({a.address for a in row}) == len(hosts)]
    return [Network(row) for row in own] + ([Network((LOOPBACK,) * len(hosts))] * one_machine)


def find_network(sessions: Sequence[Session], one_machine: bool) -> Network:
    """The first that every two hosts can use. Raises ServerUnfit that names the two who can't."""
    hosts = [session.ask(Addresses) for session in sessions]
    problem = None
    for network in choose_networks(hosts, one_machine):
        try:
            return prove(sessions, network)
        except ServerUnfit as error:
            problem = problem or error
    raise problem or no_network(sessions, hosts)


def no_network(sessions: Sequence[Session], hosts: Sequence[Addresses]) -> ServerUnfit:
    shown = [
        f"{session.host} has {', '.join(f'{a.address}/{a.prefix}' for a in host.addresses) or '–'}"
        for session, host in zip(sessions, hosts, strict=True)
    ]
    text = f"these hosts have no IPv4 network in common: {'; '.join(shown)}"
    return ServerUnfit(text, step="network", remedy="train on hosts of one network")


def prove(sessions: Sequence[Session], network: Network) -> Network:
    """Every host connects to every other one, and much goes both ways. Raises ServerUnfit."""
    token = secrets.token_hex(16)
    display = sessions[0].display
    ports: list[int] = []
    try:
        for session, own in zip(sessions, network.addresses, strict=True):
            ports.append(session.ask(Listening, address=own.address, token=token).port)
        for here, there in itertools.permutations(range(len(sessions)), 2):
            names = sessions[here].host, sessions[there].host
            display.doing(f"network: {names[0]} and {names[1]}")
            addresses = network.addresses[here], network.addresses[there]
            answer = sessions[here].ask(
                Exchanged,
                source=addresses[0].address,
                address=addresses[1].address,
                port=ports[there],
                token=token,
            )
            raise_if_unfit(answer, names, addresses)
    finally:
        for session, _ in zip(sessions, ports, strict=False):
            session.ask(ListenedEnough, token=token)
        display.clear()
    return Network(network.addresses, ports[0])


def raise_if_unfit(
    answer: Exchanged, names: tuple[str, str], addresses: tuple[Address, Address]
) -> None:
    """`names` and `addresses`: of the host that connected, and of the one that it connected to."""
    if answer.failed is None:
        return
    here, there = (f"{n} ({a.address})" for n, a in zip(names, addresses, strict=True))
    text, remedy = {"port": PORT, "host": HOST}.get(answer.failed, LARGE)
    ends = (here, there) if answer.failed == "out" else (there, here)
    mtu = " and ".join(str(size) for size in sorted({address.mtu for address in addresses}))
    way = f"from {ends[0]} to {ends[1]}"
    why = answer.why or "nothing came"
    said = text.format(here=here, there=there, way=way, mtu=mtu, why=why)
    raise ServerUnfit(said, step="network", remedy=remedy)
