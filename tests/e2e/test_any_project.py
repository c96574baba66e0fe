"""What other people's projects bring along: steps, notebooks, submodules, breakpoints, fixes
between two attempts; as their authors type it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from tests.e2e.test_living_with_a_run import run_directory
from tests.e2e.test_main_job import only_run
from tests.e2e.test_other_peoples_projects import finished, needs_tmux, project_of, rows
from tests.e2e.test_three_commands import fab, wait_for
from tests.support.project import commit, make_tree
from tests.support.terminal import fab_on_terminal, read_until


def test_each_line_of_a_command_is_a_step(tmp_path: Path, server: LoopbackServer) -> None:
    command = "python prepare.py\n\npython train.py \\\n  --fast\necho end\n"
    files = {
        "prepare.py": "print('prepared')\n",
        "train.py": (
            "import os, sys, time\nprint(sys.argv[1:], flush=True)\n"
            "while os.path.exists('../../../wait'): time.sleep(0.1)\n"
            "sys.exit('ValueError: bad')\n"
        ),
    }
    project = project_of(tmp_path / "project", files, command)
    wait = server.home / "projects" / "p" / "wait"
    fab(project, server, "deploy")
    wait.touch()
    fab(project, server, "train", "--no-follow")
    wait_for(lambda: rows(project, server)[0]["step"] == "python train.py --fast")
    assert "step python train.py --fast" in fab(project, server, "status").stdout
    wait.unlink()
    wait_for(lambda: rows(project, server)[0]["state"] == "failed")
    reason = "python train.py --fast: exit code 1: ValueError: bad"
    assert rows(project, server)[0]["reason"] == reason
    assert (run_directory(server) / "train.log").read_text().startswith("prepared\n['--fast']\n")
    fab(project, server, "fetch-results")
    assert not list(only_run(project).rglob(".step"))


NOTEBOOK = {
    "cells": [
        {
            "cell_type": "code",
            "metadata": {},
            "source": "open('model.bin', 'w').write('m'); print('trained', 6 * 7)",
            "outputs": [],
            "execution_count": None,
        }
    ],
    "metadata": {"kernelspec": {"name": "myenv", "display_name": "mine"}},
    "nbformat": 4,
    "nbformat_minor": 4,
}


def test_a_notebook_is_a_command(tmp_path: Path, server: LoopbackServer) -> None:
    """Where nothing can run it, one line says what is missing."""
    files = {"look.ipynb": json.dumps(NOTEBOOK)}
    project = project_of(tmp_path / "project", files, "look.ipynb")
    has = importlib.util.find_spec
    if has("ipykernel") and (has("papermill") or has("nbconvert")):
        finished(project, server)
        fab(project, server, "fetch-results")
        work = only_run(project) / "work"
        assert (work / "model.bin").read_text() == "m"
        assert "trained 42" in (work / "look.done.ipynb").read_text()
        return
    done = fab(project, server, "train", "--no-follow", code=10)
    assert "look.ipynb needs papermill, or nbconvert, and ipykernel" in done.stderr, done.stderr


@pytest.mark.parametrize("runner", ["papermill", "nbconvert"])
def test_how_a_notebook_is_run(tmp_path: Path, server: LoopbackServer, runner: str) -> None:
    """By what the environment has, with its own kernel, whatever the author's is called."""
    tell = "import sys; print(' '.join(sys.argv[1:]))\n"
    files = {"look.ipynb": "{}", f"{runner}.py": tell, "ipykernel.py": ""}
    project = project_of(tmp_path / "project", files, "look.ipynb")
    log = finished(project, server, "--", "-p", "lr", "0.1")
    kernel = "-k python3" if runner == "papermill" else "kernel_name=python3"
    assert kernel in log and "look.ipynb" in log and "-p lr 0.1" in log, log


def test_a_fix_between_two_attempts(tmp_path: Path, server: LoopbackServer) -> None:
    """It says which code goes on; --with-new-code takes today's, and loses nothing of the run."""
    first = "import os; open('own.txt', 'a').write('x'); open('notes.md', 'a').write('run\\n')\n"
    files = {
        "a.py": first + "open('weights', 'w').write('w'); import old; raise SystemExit(1)\n",
        "old.py": "",
        "notes.md": "mine\n",
    }
    project = project_of(tmp_path / "project", files, "python a.py")
    fab(project, server, "train", "--no-follow", code=10)
    (project / "a.py").write_text(first + "import pkg.new; print(open('weights').read(), 'fixed')")
    (project / "old.py").unlink()
    make_tree(project, {"pkg/new.py": "", "notes.md": "mine, edited\n"})
    told = fab(project, server, "train", "--resume", "latest", "--no-follow", code=10).stderr
    assert "goes on with its own copy of the code" in told, told
    assert "--with-new-code would take today's" in told, told
    words = ("train", "--resume", "latest", "--with-new-code", "--follow")
    told = fab(project, server, *words).stderr
    assert "goes on with today's code" in told and "source-2/ keeps its own" in told, told
    there = run_directory(server)
    assert (there / "train.log").read_text().endswith("w fixed\n")
    fab(project, server, "fetch-results")
    run = only_run(project)
    assert (run / "source" / "pkg" / "new.py").exists() and not (run / "source" / "old.py").exists()
    assert "import old" in (run / "source-2" / "a.py").read_text()
    assert (run / "work" / "own.txt").read_text() == "xxx"
    assert (run / "work" / "notes.md").read_text() == "mine, edited\nrun\n"
    assert (run / "work" / "notes.md.attempt-2").read_text() == "mine\nrun\nrun\n"
    asked = json.loads((run / "run.json").read_text())
    assert len(asked["former_releases"]) == 1 and asked["release"] != asked["former_releases"][0]
    refused = fab(project, server, "train", "--with-new-code", code=2).stderr
    assert "belongs to --resume" in refused and len(refused.splitlines()) == 1


def test_a_breakpoint_that_nobody_can_answer(tmp_path: Path, server: LoopbackServer) -> None:
    script = "import subprocess, sys\nsys.exit(subprocess.call([sys.executable, 'b.py'], stdin=-3))"
    files = {"a.py": script, "b.py": "breakpoint()\nprint(1)\n"}
    project = project_of(tmp_path / "project", files, "python a.py")
    done = fab(project, server, "train", "--follow", code=10)
    assert "breakpoint() in the code, and nobody is there to answer" in done.stderr, done
    assert "--interactive needs a terminal here" in (
        fab(project, server, "train", "--interactive", code=2).stderr
    )


@needs_tmux
def test_an_interactive_run_is_in_its_terminal_at_once(
    tmp_path: Path, server: LoopbackServer
) -> None:
    project = project_of(
        tmp_path / "project", {"a.py": "breakpoint()\nprint('on', flush=True)\n"}, "python a.py"
    )
    leader, process = fab_on_terminal(project, server, "train", "--interactive")
    read_until(leader, b"(Pdb)")
    time.sleep(1)
    os.write(leader, b"p 6 * 7\r")
    log = run_directory(server) / "train.log"
    wait_for(lambda: "(Pdb) p 6 * 7\n42\n" in log.read_text())
    os.write(leader, b"c\r")
    process.wait(20)
    os.close(leader)
    wait_for(lambda: rows(project, server)[0]["state"] == "finished")


def git(path: Path, *words: str) -> None:
    argv = ["git", "-c", "protocol.file.allow=always", "-C", str(path), *words]
    subprocess.run(argv, check=True, capture_output=True)


def test_submodules_and_repositories_inside_and_what_lfs_has_not_brought(
    tmp_path: Path, server: LoopbackServer
) -> None:
    """Each with what was changed, added and removed in it and never committed."""
    library = make_tree(
        tmp_path / "library", {"lib.py": "value = 1\n", "gone.py": "", "kept.py": ""}
    )
    commit(library, "first")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    script = "import sys; sys.path[:0] = ['lib', 'inner']\nimport lib, more, mine, kept\n"
    files = {"a.py": script + "print(lib.value, more.value, mine.value)\n", "weights.pt": pointer}
    project = project_of(tmp_path / "project", files, "python a.py")
    git(project, "submodule", "add", str(library), "lib")
    commit(project, "with a library")
    make_tree(project, {"lib/lib.py": "value = 2\n", "lib/more.py": "value = 3\n"})
    (project / "lib" / "gone.py").unlink()
    commit(make_tree(project / "inner", {"mine.py": "value = 4\n"}), "a repository inside")
    told = fab(project, server, "deploy").stderr
    assert "weights.pt: only Git LFS pointers, without their content; `git lfs pull`" in told, told
    assert finished(project, server) == "2 3 4\n"
    work = run_directory(server) / "work"
    assert not (work / "lib" / "gone.py").exists() and not (work / "lib" / ".git").exists()


@pytest.mark.parametrize("command", ["python src/train.py", "cd src/deep && python ../train.py"])
def test_the_progress_file_is_found_from_anywhere(
    tmp_path: Path, server: LoopbackServer, command: str
) -> None:
    progress = Path(__file__).parents[2] / "remote" / "project" / "run_progress.py"
    files = {
        "src/train.py": "from run_progress import tell\ntell(epoch=1, max_epochs=2)\n",
        "src/deep/x": "",
        "run_progress.py": progress.read_text(),
    }
    project = project_of(tmp_path / "project", files, command, python=sys.executable)
    finished(project, server)
    assert rows(project, server)[0]["max_epochs"] == 2
