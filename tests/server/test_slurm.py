"""Trainings as jobs of a real Slurm: submitted once, told truthfully, stopped and gone on with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from tests.support.faults import Lab
from tests.support.slurm import PROGRAMS, Cluster, missing
from tests.support.sshd import USUAL, MakeServer, sparse_path

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # munge wants a folder that everybody can enter, which pytest's own are not.
    with tempfile.TemporaryDirectory(prefix="slurm-") as place, Cluster(Path(place)) as running:
        yield running


@pytest.fixture
def login(cluster: Cluster, make_server: MakeServer, tmp_path: Path) -> Iterator[LoopbackServer]:
    """A login node without tmux."""
    usual = [name for name in USUAL if name != "tmux"]
    path = sparse_path(tmp_path / "bin", (*usual, *PROGRAMS))
    yield make_server(env=cluster.environment, path=path)
    cluster.ask("scancel -u root")


def lab_on(login: LoopbackServer, tmp_path: Path, script: str, **slurm: object) -> Lab:
    settings = {"launcher": "slurm", "results": "", "slurm": {"gres": "gpu:1", **slurm}}
    return Lab(login, tmp_path, files={"train.sh": script}, settings=settings)


def test_the_three_commands(login: LoopbackServer, cluster: Cluster, tmp_path: Path) -> None:
    lab = lab_on(login, tmp_path, "hostname > where; echo $CUDA_VISIBLE_DEVICES; echo done\n")
    done = lab.task("train", follow=True)
    assert done.code == 0, done.err
    assert "submitted to Slurm as job" in done.out and "finished" in done.out
    row = lab.rows()[0]
    assert (row["state"], row["server"] in cluster.nodes) == ("finished", True)
    assert lab.task("fetch_results").code == 0
    where = next(lab.results.glob("*/work/where")).read_text().strip()
    assert where in cluster.nodes
    assert len(cluster.jobs(row["run"])) == 1


def test_refused_before_a_run_exists(login: LoopbackServer, tmp_path: Path) -> None:
    lab = lab_on(login, tmp_path, "echo up\n", partition="nowhere")
    done = lab.task("train")
    assert done.code == 9 and len(done.error_lines) == 1
    assert "invalid partition specified: nowhere" in done.error_lines[0]
    assert lab.rows() == [] and not list((lab.root / "runs").glob("2*"))
