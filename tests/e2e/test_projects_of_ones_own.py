"""Any Lightning project, any script: `python -m remote init` in a project that shares nothing with
trainer/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from remote.loopback import LoopbackServer
from tests.e2e.test_main_job import only_run
from tests.e2e.test_three_commands import fab
from tests.support.project import REPOSITORY, make_tree

LIGHTNING = """
import pathlib, torch, pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from run_progress import lightning_callback

class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
    def share(self, batch):
        logits = self.layer(batch[0])
        right = (logits.argmax(1) == batch[1]).float().mean()
        return torch.nn.functional.cross_entropy(logits, batch[1]), right
    def training_step(self, batch, _):
        loss, _ = self.share(batch)
        self.log("train_loss", loss)
        return loss
    def validation_step(self, batch, _):
        self.log("val_acc", self.share(batch)[1])
    def test_step(self, batch, _):
        self.log("test_acc", self.share(batch)[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)

pl.seed_everything(1)
points = torch.randn(256, 4)
loader = DataLoader(TensorDataset(points, (points[:, 0] > 0).long()), 32)
keep = ModelCheckpoint("checkpoints", monitor="val_acc", mode="max")
quiet = dict(accelerator="cpu", logger=False, enable_progress_bar=False)
trainer = pl.Trainer(max_epochs=3, callbacks=[lightning_callback(), keep], **quiet)
trainer.fit(model := Line(), loader, loader)
trainer.test(model, loader)
"""


def run_init(project: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    argv = [sys.executable, "-m", "remote", "init", *words]
    done = subprocess.run(
        argv, cwd=project, capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done


OURS = {"PYTHONPATH": str(REPOSITORY)}
"""In place of `pip install`, which puts the same package on the path."""


def test_a_lightning_project_of_somebody_else(tmp_path: Path, server: LoopbackServer) -> None:
    project = make_tree(
        tmp_path / "mine", {"train.py": LIGHTNING, "README": "mine", "notes/a.txt": "a"}
    )
    told = run_init(project).stdout
    assert (
        all(f"wrote {name}" in told for name in ("fabfile.py", "fabric.yaml", "run_progress.py"))
        and "python train.py" in told
    )
    assert len((project / "fabfile.py").read_text().splitlines()) < 10
    environment = {**OURS, "FABRIC_REMOTE_PYTHON": sys.executable}
    assert "first release" in fab(project, server, "deploy", env=environment).stdout
    trained = fab(project, server, "train", "--follow", env=environment)
    assert "finished" in trained.stdout, trained
    (row,) = json.loads(fab(project, server, "status", "--json", env=environment).stdout)
    assert (row["state"], row["epoch"], row["max_epochs"]) == ("finished", 3, 3)
    assert (
        row["val_accuracy"] > 0.8
        and row["best_val_accuracy"] >= row["val_accuracy"]
        and row["test_accuracy"] > 0.8
    )
    fetched = fab(project, server, "fetch-results", env=environment).stdout
    assert f"test accuracy  {100 * row['test_accuracy']:.2f}%" in fetched
    run = only_run(project)
    assert list((run / "work" / "checkpoints").glob("*.ckpt"))
    assert (run / "source" / "notes" / "a.txt").read_text() == "a" and not (
        run / "source" / "remote"
    ).exists()
    assert "nothing changed" in fab(project, server, "deploy", env=environment).stdout


def test_any_script_and_what_it_does_not_tell(tmp_path: Path, server: LoopbackServer) -> None:
    script = (
        "from run_progress import tell\n"
        "for epoch in range(1, 4):\n"
        "    tell(epoch=epoch, max_epochs=3, val_accuracy=epoch / 10)\n"
    )
    project = make_tree(
        tmp_path / "mine",
        {"loop.py": script + "open('model.bin', 'w').write('m')\n", "plain.sh": "echo quiet\n"},
    )
    run_init(project, "--command", "python loop.py", "--results", "model.bin")
    environment = {**OURS, "FABRIC_REMOTE_PYTHON": sys.executable}
    fab(project, server, "train", "--follow", env=environment)
    (row,) = json.loads(fab(project, server, "status", "--json", env=environment).stdout)
    assert (row["epoch"], row["best_val_accuracy"], row["state"]) == (3, 0.3, "finished")
    fab(project, server, "fetch-results", env=environment)
    assert (only_run(project) / "work" / "model.bin").read_text() == "m"
    silent = fab(
        project,
        server,
        "train",
        "--follow",
        env={**environment, "FABRIC_REMOTE_COMMAND": "sh plain.sh"},
    )
    assert "quiet" in silent.stdout and "finished" in silent.stdout


def test_nothing_that_is_there_is_changed(tmp_path: Path) -> None:
    mine = {
        "fabfile.py": "# mine\n",
        "fabric.yaml": "run: {}\n",
        "src/train.py": "x",
        "requirements.txt": "torch\n",
    }
    project = make_tree(tmp_path / "mine", mine)
    told = run_init(project)
    assert "fabfile.py is there already and stays as it is: add to it" in told.stderr
    assert (project / "fabfile.py").read_text() == "# mine\n" and (
        project / "fabric.yaml"
    ).read_text() == "run: {}\n"
    (project / "fabric.yaml").unlink()
    run_init(project, "--command", 'python "my script.py" --name: #1')
    settings = yaml.safe_load((project / "fabric.yaml").read_text())["remote"]
    assert (
        settings["command"] == 'python "my script.py" --name: #1'
        and settings["requirements"] == "requirements.txt"
    )
    assert settings["root"] == "~/projects/{project}"


@pytest.mark.parametrize(
    ("files", "words", "told"),
    [
        ({"a.txt": "x"}, (), "no training script was found"),
        ({"a.txt": "x"}, ("nowhere",), "no such folder"),
    ],
)
def test_what_it_can_not_guess_it_asks_for(
    tmp_path: Path, files: dict[str, str], words: tuple[str, ...], told: str
) -> None:
    done = run_init(make_tree(tmp_path / "mine", files), *words, code=2)
    assert told in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_only_script_is_the_training(tmp_path: Path) -> None:
    project = make_tree(tmp_path / "mine", {"fit.py": "print(1)", "setup.py": "", "b/c.py": ""})
    assert "the training: python fit.py" in run_init(project).stdout
    several = make_tree(tmp_path / "several", {"fit.py": "print(1)", "other.py": ""})
    assert "no training script was found" in run_init(several, code=2).stderr


def test_what_init_does_not_choose_it_names(tmp_path: Path) -> None:
    files = {
        "train.py": "x",
        "src/train.py": "y",
        "fit.py": "Trainer()",
        "pyproject.toml": "",
        "Pipfile": "",
        "look.ipynb": "{}",
    }
    done = run_init(make_tree(tmp_path / "mine", files))
    assert "the training: python train.py" in done.stdout
    for name in ("src/train.py", "fit.py", "look.ipynb"):
        assert f"{name} may be a training, too: --command says which is meant" in done.stderr
    assert (
        "nothing that names the packages was found, so none are installed there. Pipfile: pipenv"
        in done.stderr
    )
    again = run_init(tmp_path / "mine").stderr
    assert "run_progress.py may be a training" not in again and "fabric.yaml is there" in again
    only = run_init(make_tree(tmp_path / "other", {"look.ipynb": "{}"}))
    assert "the training: look.ipynb" in only.stdout and "may be" not in only.stderr


def test_a_remote_of_the_project_s_own_is_said(tmp_path: Path) -> None:
    project = make_tree(tmp_path / "mine", {"train.py": "x", "remote/__init__.py": ""})
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); sys.argv = ['remote',"
                " 'init']\nfrom remote.__main__ import main; sys.exit(main())"
            ),
        ],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "`remote` of its own, which hides ours" in done.stderr


def test_the_package_has_what_a_laptop_needs(tmp_path: Path) -> None:
    """`pip install` of this repository: packages and requirements as pyproject.toml names them."""
    tomllib = pytest.importorskip("tomllib")
    told = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = {
        path.parent.relative_to(REPOSITORY).as_posix().replace("/", ".")
        for path in (REPOSITORY / "remote").rglob("*.py")
    }
    include = told["tool"]["setuptools"]["packages"]["find"]["include"]
    found = pytest.importorskip("setuptools").find_packages(str(REPOSITORY), include=include)
    assert set(found) == packages
    assert told["tool"]["setuptools"]["dynamic"]["dependencies"]["file"] == [
        "remote/requirements.txt"
    ]
