"""remote-train: the same tasks as fab, in a folder with a fabfile and in one without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from remote.loopback import LoopbackServer
from tests.support.project import REPOSITORY, make_tree

CODE = "from remote.tasks.program import main; main()"


def remote_train(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", CODE, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


def test_a_folder_without_a_fabfile_trains(tmp_path: Path, server: LoopbackServer) -> None:
    """By its fabric.yaml; the options before the task and what follows `--` arrive."""
    settings = "load_ssh_configs: false\nremote:\n  command: sh a.sh\n  requirements: none\n"
    project = make_tree(tmp_path / "p", {"a.sh": 'echo "got $1"\n', "fabric.yaml": settings})
    before = ("-S", str(server.ssh_config), "-H", "loopback")
    done = remote_train(project, *before, "train", "--follow", "--", "this")
    assert done.returncode == 0 and "got this" in done.stdout and "finished" in done.stdout, done
    assert (server.home / "projects" / "p" / "runs").is_dir()
    wrong = remote_train(project, *before, "status", "--", "this")
    assert wrong.returncode == 2 and "belongs to train, not to status" in wrong.stderr


def test_a_fabfile_is_used_where_there_is_one(tmp_path: Path) -> None:
    own = "from invoke import task\n@task\ndef mine(c):\n    print('mine')\n"
    project = make_tree(tmp_path / "p", {"fabfile.py": own})
    assert remote_train(project, "mine").stdout == "mine\n"
    inside = make_tree(project / "deep", {"x": ""})
    assert remote_train(inside, "mine").stdout == "mine\n"


def test_completion(tmp_path: Path) -> None:
    """What the shells' script asks for."""
    done = remote_train(tmp_path, "--complete", "--", "remote-train train --with")
    assert "--with-new-code" in done.stdout.split(), done
    script = remote_train(tmp_path, "--print-completion-script", "bash").stdout
    assert "complete -F" in script and "remote-train" in script
