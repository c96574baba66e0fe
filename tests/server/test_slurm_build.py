"""Environments that are built in a job, where trainings run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.errors import EnvironmentFailed, GpuUnfit
from remote.records import SlurmSettings
from tests.support.environment_scene import Scene
from tests.support.slurm import PROGRAMS, Cluster, missing
from tests.support.sshd import USUAL, MakeServer, sparse_path
from tests.support.wheels import Index, fake_wheels

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture
def scene(cluster: Cluster, make_server: MakeServer, tmp_path: Path) -> Iterator[Scene]:
    path = sparse_path(tmp_path / "bin", (*USUAL, *PROGRAMS))
    with Index(fake_wheels(tmp_path / "wheels")) as index:
        yield Scene(make_server(env=cluster.environment, path=path), index, tmp_path)


def test_it_is_built_on_a_node_once_and_refused_in_one_line(scene: Scene, cluster: Cluster) -> None:
    def deploy(text: str, **slurm: str) -> str:
        made = scene.deploy(text, launcher="slurm", slurm=SlurmSettings(build="job", **slurm))
        return made.steps[-1].text

    with pytest.raises(GpuUnfit, match="Invalid partition name") as error:
        deploy("demo-pkg\n", partition="nowhere")
    assert "remote.slurm.build: login" in str(error.value.remedy)
    assert "environment built" in deploy("demo-pkg\n")
    assert scene.build_state()["host"] in cluster.nodes and "cut off" not in scene.shown
    jobs = cluster.ask("squeue -h -t all -o %j").split()
    assert jobs.count("fab-build") == 1, jobs
    assert "environment kept" in deploy("demo-pkg\n")
    assert cluster.ask("squeue -h -t all -o %j").split() == jobs
    scene.use_index("http://127.0.0.1:1/simple")
    with pytest.raises(EnvironmentFailed, match="can't be reached") as failed:
        deploy("demo-pkg<1.1\n")
    assert "this node is offline? remote.slurm.build: login" in str(failed.value.remedy)
