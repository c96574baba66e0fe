"""The kinds of projects that people have (tests/projects), each trained by its own command with
nothing added but fabfile.py and fabric.yaml."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from tests.e2e.test_living_with_a_run import run_directory
from tests.e2e.test_main_job import only_run
from tests.e2e.test_three_commands import fab
from tests.support.project import commit, make_project

PROJECTS = Path(__file__).parents[1] / "projects"


@dataclass(frozen=True)
class Kind:
    """A folder of tests/projects. `says`: what is in the log; `brings`: what comes back of work/;
    `needs`: modules; `words`: what is typed behind `--`."""

    name: str
    says: str
    brings: str
    needs: tuple[str, ...] = ("torch",)
    words: tuple[str, ...] = ()


KINDS = (
    Kind("plain-script", "epoch 2 lr 0.25", "model.pt", words=("--lr", "0.25")),
    Kind(
        "lightning-cli",
        "max_epochs=1",
        "checkpoints/*.ckpt",
        ("pytorch_lightning", "jsonargparse"),
        ("--trainer.max_epochs=1",),
    ),
    Kind("hydra", "lr 0.3", "outputs/*/*/model.pt", ("torch", "hydra"), ("lr=0.3",)),
    Kind(
        "huggingface-trainer",
        "train_loss",
        "out/checkpoint-*/model.safetensors",
        ("transformers", "accelerate"),
    ),
    Kind("torchrun", "rank 1 of 2 epoch 1", "checkpoints/model.pt"),
    Kind("accelerate", "epoch 1 on 1", "state/model.safetensors", ("accelerate",)),
    Kind("src-package", "src/mine/train.py", "model.pt"),
    Kind("python-m", "epoch 2 of 3", "last.ckpt", words=("--epochs", "3")),
    Kind("submodule", "loss", "model.pt"),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_it_trains_as_it_is(kind: Kind, tmp_path: Path, server: LoopbackServer) -> None:
    missing = [name for name in kind.needs if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install them to try this kind")
    project = make_project(tmp_path / "p", parts=("fabfile.py", "remote"), git=False)
    shutil.copytree(PROJECTS / kind.name, project, dirs_exist_ok=True)
    if kind.name == "submodule":
        into_submodule(project, "library")
    commit(project, "first")
    behind = ["--", *kind.words] if kind.words else []
    env = {"FABRIC_REMOTE_PYTHON": sys.executable}
    told = fab(project, server, "train", "--follow", *behind, env=env)
    assert "finished" in told.stdout, told
    assert kind.says in (run_directory(server) / "train.log").read_text()
    fab(project, server, "fetch-results", env=env)
    assert list((only_run(project) / "work").glob(kind.brings)), kind.brings


def into_submodule(project: Path, name: str) -> None:
    """What lies in the folder becomes a repository elsewhere, and the folder its submodule."""
    elsewhere = project.parent / name
    shutil.move(project / name, elsewhere)
    commit(elsewhere, "first")
    subprocess.run(["git", "init", "-q", project], check=True)
    words = ["-c", "protocol.file.allow=always", "-C", str(project), "submodule", "--quiet", "add"]
    subprocess.run(["git", *words, str(elsewhere), name], check=True)
