"""One training on hosts with networks of their own: what a real one can do to it."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.test_nodes import QUICK, TELL, WAITS, Group
from tests.support.faults import Done, Lab, wait_until
from tests.support.hosts import Hosts, missing
from tests.support.sshd import MakeServer
from tests.support.training import same_bits, weights_of

ROOT = Path(__file__).resolve().parents[2]
IGNORED = shutil.ignore_patterns("__pycache__")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture
def hosts(make_server: MakeServer, tmp_path: Path) -> Iterator[Hosts]:
    # As many threads in each process, wherever it is: their number changes the last bits.
    env = {**QUICK, "OMP_NUM_THREADS": "1"}
    with Hosts(tmp_path / "hosts", "ab", make_server, env) as running:
        yield running


@pytest.fixture
def group(hosts: Hosts, tmp_path: Path) -> Group:
    group = Group(hosts.servers["a"], tmp_path)
    group.others = [Lab(hosts.servers["b"], tmp_path / "second")]
    return group


def test_their_network_is_found_and_used(group: Group) -> None:
    done = group.train(TELL)
    assert done.code == 0, done
    assert "0 of 2 at 10.77.0.1:" in done.out and "by eth0" in done.out, done.out


def test_a_host_that_is_killed_is_told_within_seconds(group: Group, hosts: Hosts) -> None:
    assert group.train(WAITS, follow=False).code == 0
    began = time.monotonic()
    hosts.kill("b")
    done = group.on("a", "wait")
    assert done.code == 10 and "b is gone" in done.out, done
    assert time.monotonic() - began < 10


def test_a_cut_link_is_told(group: Group, hosts: Hosts) -> None:
    assert group.train(WAITS, follow=False).code == 0
    hosts.cut("b")
    for name, other in ("ab", "ba"):
        done = group.on(name, "wait")
        assert done.code == 10 and f"nothing was heard of {other} for 4 s" in done.out, done


def test_a_cut_between_two_that_both_reach_the_first_is_told(
    make_server: MakeServer, tmp_path: Path
) -> None:
    """Neither the first host nor torch would notice it for half an hour."""
    with Hosts(tmp_path / "hosts", "abc", make_server, QUICK) as hosts:
        group = Group(hosts.servers["a"], tmp_path)
        group.others = [Lab(hosts.servers[name], tmp_path / name) for name in "bc"]
        (group.project / "train.sh").write_text(WAITS)
        assert group.on("abc", "train", nodes=3, follow=False).code == 0
        for name, number in (("b", 3), ("c", 2)):
            hosts.on(name, f"ip route add blackhole 10.77.0.{number}/32")
        began = time.monotonic()
        done = group.on("a", "wait")
        assert done.code == 10 and re.search(r"([bc]) heard nothing of [bc] for 4 s", done.out), (
            done
        )
        assert time.monotonic() - began < 15


def test_packets_that_are_too_large_for_the_way_are_named_before_it_starts(
    group: Group, hosts: Hosts
) -> None:
    for name in "ab":
        hosts.on(name, "ip link set eth0 mtu 9000 gso_max_segs 1")
    done = group.train(TELL)
    assert done.code == 7 and "small packets get from" in done.err, done
    assert "(MTU 9000)" in done.err and group.both() == []


def test_a_network_that_only_seems_to_be_common_is_passed_over(group: Group, hosts: Hosts) -> None:
    """As a second interface of each that leads elsewhere."""
    for number, name in enumerate("ab", 1):
        hosts.on(name, "ip link add aux0 type veth peer name aux1")
        hosts.on(name, f"ip addr add 10.99.0.{number}/24 dev aux0")
        for link in ("aux0", "aux1"):
            hosts.on(name, f"ip link set {link} up")
    done = group.train(TELL)
    assert done.code == 0, done
    assert "network: 10.77.0.1 (eth0), 10.77.0.2 (eth0)" in done.out, done.out
    assert "by eth0" in group.log(0) and "by eth0" in group.log(1)


def test_a_way_that_is_closed_is_named(group: Group, hosts: Hosts) -> None:
    hosts.on("b", "ip route add blackhole 10.77.0.1/32")
    done = group.train(TELL)
    assert done.code == 7 and "(10.77.0.1)" in done.err, done


TINY = (
    "accelerator=cpu,deterministic=true,widths=8,train_images=400,validation_max=60,max_epochs=12,batch_size=50"
    ",num_workers=0"
)


@pytest.fixture
def training(group: Group) -> Group:
    """Our trainer, with the libraries of this environment."""
    shutil.copytree(ROOT / "trainer", group.project / "trainer", ignore=IGNORED)
    own = {"command": "python -m trainer.train", "python": sys.executable}
    group.settings = {**group.settings, **own}
    return group


def fit(group: Group, names: str, **options: Any) -> Done:
    asked = {
        "recipe": "standard",
        "set": TINY.split(","),
        "data": "synthetic",
        "follow": True,
        **options,
    }
    return group.on(names, "train", **asked)


def weights(run: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return weights_of(run / "checkpoints" / name)


def test_two_hosts_train_as_one_with_two_processes_also_when_stopped_between(
    training: Group,
) -> None:
    """Bit for bit, though each host's own name leads to 127.0.1.1. The first one has the results;
    the other one is given the checkpoint, for it has none."""
    assert fit(training, "ab", nodes=2, follow=False).code == 0
    run, other = training.run_dirs()
    wait_until(lambda: (training.both()[0]["epoch"] or 0) >= 2, 90)
    stopped = training.on("ab", "stop")
    assert stopped.code == 0 and "stopped by" in stopped.out, stopped
    assert not (other / "checkpoints").exists()
    on_cpu = ["accelerator=cpu"]
    done = training.on("ab", "train", resume="latest", set=on_cpu, follow=True)
    assert done.code == 0 and "test accuracy" in done.out, done
    one = fit(training, "a", devices="0,1")
    assert one.code == 0, one
    alone = training.run_dirs()[0]
    assert same_bits(weights(run), weights(alone))
    summaries = [json.loads((path / "summary.json").read_text()) for path in (run, alone)]
    assert summaries[0]["test_accuracy"] == summaries[1]["test_accuracy"]
    assert not (other / "summary.json").exists()
    fetched = training.on("ab", "fetch_results", run=run.name)
    assert fetched.code == 0, fetched
    here = training.results / run.name
    assert (here / "summary.json").exists() and (here / "node-1" / "train.log").exists()
    assert not (here / "node-1" / "source").exists()


SUMS = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
mine = torch.full((10000,), float(dist.get_rank() + 1))
dist.all_reduce(mine)
print(f"rank {dist.get_rank()} of {dist.get_world_size()} sums to {mine[0].item():.0f}", flush=True)
dist.destroy_process_group()
"""


def test_the_documented_torchrun_line(group: Group) -> None:
    """Though no host can resolve another one's name."""
    (line,) = re.findall(r"command: (torchrun .*)\n", (ROOT / "docs/clusters.md").read_text())
    (group.project / "train.py").write_text(SUMS)
    group.settings = {**group.settings, "command": line, "python": sys.executable}
    done = group.on("ab", "train", nodes=2, follow=True)
    assert done.code == 0, done
    told = group.log(0) + group.log(1)
    assert all(f"rank {rank} of 4 sums to 10" in told for rank in range(4)), told
