"""A training on several hosts, as each host's processes see it."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from torch import distributed

from tests.support.training import tiny_config
from trainer.checkpoints import share_checkpoints
from trainer.devices import choose_devices
from trainer.processes import host_count


def test_how_many_hosts_is_said_by_whoever_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNODES", "3")
    assert host_count() == 1, "a batch system may set it for purposes of its own"
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    devices = choose_devices(tiny_config(devices="2"))
    assert (devices.count, devices.hosts, devices.world) == (2, 3, 6)
    assert devices.first().world == 1


def one_host(rank: int, folder: Path) -> None:
    os.environ.update(NNODES="2", NODE_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    share_checkpoints(folder / str(rank))
    distributed.destroy_process_group()


def test_all_hosts_have_the_first_ones_checkpoints(tmp_path: Path) -> None:
    first, second = tmp_path / "0", tmp_path / "1"
    for place in (first, second):
        place.mkdir()
    (first / "best.ckpt").write_bytes(b"best")
    (first / "last.ckpt").write_bytes(b"newer")
    (second / "last.ckpt").write_bytes(b"older")
    (second / "gone.ckpt").write_bytes(b"not there any more")
    spawn = multiprocessing.get_context("spawn")
    hosts = [spawn.Process(target=one_host, args=(rank, tmp_path)) for rank in range(2)]
    for process in hosts:
        process.start()
    for process in hosts:
        process.join(120)
    held = [{file.name: file.read_bytes() for file in p.iterdir()} for p in (first, second)]
    assert held[0] == held[1] == {"best.ckpt": b"best", "last.ckpt": b"newer"}
