"""Several hosts for one training: which network they use, and whose end is the reason of all."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from remote.agent.group.peers import HOST_LOST, Report, choose_verdict, lacking
from remote.agent.shared.environment import Environment
from remote.deploy.deploy import Deployed
from remote.errors import EnvironmentFailed, ServerUnfit
from remote.hosts.network import choose_networks, raise_if_unfit
from remote.hosts.nodes import require_same
from remote.link.answers import Address, Addresses, Exchanged
from remote.link.facts import Facts, Root
from remote.records import Release


def host(*addresses: str, ssh: str | None = None) -> Addresses:
    """eth0, eth1, … as `address/prefix`."""
    rows = [text.partition("/") for text in addresses]
    return Addresses(
        tuple(Address(f"eth{n}", row[0], int(row[2])) for n, row in enumerate(rows)), ssh
    )


def chosen(*hosts: Addresses, one_machine: bool = False) -> list[tuple[str, ...]]:
    networks = choose_networks(hosts, one_machine)
    return [tuple(address.address for address in network.addresses) for network in networks]


def test_the_network_that_all_have_is_chosen_in_the_order_of_the_first_hosts_interfaces() -> None:
    a = host("192.168.1.5/24", "10.0.0.1/16", "172.17.0.1/16")
    b = host("172.17.0.1/16", "10.0.3.2/16", "192.168.1.6/24")
    c = host("10.0.9.9/16")
    assert chosen(a, b) == [("192.168.1.5", "192.168.1.6"), ("10.0.0.1", "10.0.3.2")]
    assert chosen(a, b, c) == [("10.0.0.1", "10.0.3.2", "10.0.9.9")]


def test_docker_bridges_which_every_host_has_are_no_network() -> None:
    assert chosen(host("172.17.0.1/16"), host("172.17.0.1/16")) == []


def test_where_none_is_common_the_addresses_of_the_logins_may_do() -> None:
    a, b = host("10.1.0.1/24", ssh="10.1.0.1"), host("10.2.0.1/24", ssh="10.2.0.1")
    assert chosen(a, b) == [("10.1.0.1", "10.2.0.1")]
    assert chosen(a, dataclasses.replace(b, ssh="127.0.0.1")) == []
    assert chosen(a, a, one_machine=True) == [("127.0.0.1", "127.0.0.1")]


@pytest.mark.parametrize(
    ("failed", "said"),
    [
        ("port", "b (10.0.0.2) can't be reached from a (10.0.0.1) (timed out)"),
        ("host", "another machine answers at b (10.0.0.2) when a (10.0.0.1) asks"),
        ("out", "small packets get from a (10.0.0.1) to b (10.0.0.2), 256 KiB do not (timed out)"),
        ("back", "small packets get from b (10.0.0.2) to a (10.0.0.1), 256 KiB do not (timed out)"),
    ],
)
def test_the_pair_that_fails_is_named_with_its_direction(failed: Any, said: str) -> None:
    addresses = Address("eth0", "10.0.0.1", 24, 9000), Address("eth0", "10.0.0.2", 24, 1500)
    with pytest.raises(ServerUnfit) as error:
        raise_if_unfit(Exchanged(failed, "timed out"), ("a", "b"), addresses)
    assert said in error.value.message and error.value.remedy
    assert ("MTU 1500 and 9000" in error.value.message) == (failed in ("out", "back"))


DONE = Report("finished")
STOPPED = Report("stopped", "stopped by me", "stopped")
ECHOED = Report("failed", "exit code 1: gloo", "exit code", again=True, echo=True)
FAILED = Report("failed", "exit code 3", "exit code", again=True)
GONE = Report("failed", "c is gone", HOST_LOST, again=True)


@pytest.mark.parametrize(
    ("reports", "reason"),
    [
        ({1: DONE, 0: DONE}, None),
        ({0: ECHOED, 1: FAILED}, "b: exit code 3"),
        ({0: ECHOED, 2: GONE, 1: FAILED}, "c is gone"),
        ({1: ECHOED, 0: ECHOED}, "b: exit code 1: gloo"),
        ({1: FAILED, 2: STOPPED, 0: DONE}, "stopped by me"),
        ({0: DONE, 1: FAILED}, "b: exit code 3"),
    ],
)
def test_the_first_end_that_is_no_echo_is_the_reason(
    reports: dict[int, Report], reason: str | None
) -> None:
    verdict = choose_verdict(reports, ["a", "b", "c"], is_trainer=False)
    assert verdict.reason == reason


def test_what_our_trainer_has_finished_is_finished() -> None:
    assert choose_verdict({1: FAILED, 0: DONE}, ["a", "b"], is_trainer=True) == DONE
    assert choose_verdict({1: FAILED, 0: ECHOED}, ["a", "b"], is_trainer=True).state == "failed"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a//b", ""])
def test_a_file_outside_the_run_is_not_taken(path: str) -> None:
    with pytest.raises(OSError, match="not a path inside the run"):
        lacking("/nowhere", [[path, 1, "0"]])


def test_other_versions_are_named() -> None:
    def deployed(**packages: str) -> Deployed:
        made = Environment("k", version=packages.pop("python", "3.11.7"), packages=packages)
        return Deployed(Release("t", ()), Facts(Root("/p")), made)

    same = deployed(torch="2.10.0", numpy="2.1")
    require_same("a", same, "b", deployed(torch="2.10.0", numpy="2.1", python="3.11.9"))
    with pytest.raises(EnvironmentFailed) as error:
        require_same("a", same, "b", deployed(torch="2.9.1", numpy="2.1", python="3.12.1"))
    shown = "a and b have other versions: python 3.11 and 3.12; torch 2.10.0 and 2.9.1"
    assert error.value.message == shown
