"""Public projects' shapes, trained with no edit but fabric.yaml, as their authors run them:
terminals, shells, layouts, resumption."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from remote.loopback import LoopbackServer
from tests.e2e.test_living_with_a_run import run_directory
from tests.e2e.test_main_job import only_run
from tests.e2e.test_three_commands import fab, wait_for
from tests.support.project import make_project
from tests.support.sshd import sparse_path
from tests.support.terminal import fab_on_terminal, read_until

PARTS = ("fabfile.py", "remote")
BASE: dict[str, Any] = {"requirements": "none", "project": "p", "python": sys.executable}
ASKS = """
import os, sys, time
size, e = os.popen("stty size").read().strip(), os.environ
print("size", size, sys.stdin.isatty(), e["COLUMNS"], e["LINES"])
for step in range(20):
    print(f"\\r[{'=' * step}{'.' * (20 - step)}] {step}", end="", flush=True)
    time.sleep(0.02)
print()
name = input("who? ")
print("hello", name)
breakpoint()
print("after", flush=True)
time.sleep(float(os.environ.get("REST", "0")))
"""


def rows(project: Path, server: LoopbackServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(fab(project, server, "status", "--json").stdout)
    return found


def project_of(path: Path, files: dict[str, Any], command: str, **settings: Any) -> Path:
    return make_project(path, files, settings={**BASE, "command": command, **settings}, parts=PARTS)


def finished(project: Path, server: LoopbackServer, *words: str) -> str:
    """Train to the end; returns the log."""
    done = fab(project, server, "train", "--follow", *words)
    assert "finished" in done.stdout, done
    return (run_directory(server) / "train.log").read_text()


needs_tmux = pytest.mark.needs("sshd", "ssh", "tmux")


@needs_tmux
def test_a_run_has_a_terminal_that_takes_answers(tmp_path: Path, server: LoopbackServer) -> None:
    project = project_of(tmp_path / "project", {"ask.py": ASKS}, "python ask.py")
    fab(project, server, "train", "--no-follow")
    wait_for(lambda: rows(project, server)[0]["asking"])
    told = fab(project, server, "status")
    assert "waits for input: who?" in told.stdout and "attach --run" in told.stderr
    leader, process = fab_on_terminal(project, server, "attach")
    read_until(leader, b"who?")
    time.sleep(1)
    os.write(leader, b"me\r")
    read_until(leader, b"(Pdb)")
    os.write(leader, b"p 6 * 7\r")
    train_log = run_directory(server) / "train.log"
    wait_for(lambda: "42\n" in train_log.read_text())
    os.write(leader, b"c\r")
    process.wait(20)
    os.close(leader)
    wait_for(lambda: rows(project, server)[0]["state"] == "finished")
    log = train_log.read_text()
    assert (
        log.startswith("size 40 120 True 120 40\n[===================.] 19\nwho? ")
        and "\r" not in log
    )
    assert "hello me\n" in log and "42\n" in log and log.endswith("after\n")


@needs_tmux
def test_ctrl_c_of_somebody_attached_stops_it(tmp_path: Path, server: LoopbackServer) -> None:
    project = project_of(
        tmp_path / "project",
        {"a.py": "import time; print('up', flush=True); time.sleep(300)"},
        "python a.py",
    )
    fab(project, server, "train", "--no-follow")
    leader, process = fab_on_terminal(project, server, "attach")
    read_until(leader, b"up")
    time.sleep(1)
    os.write(leader, b"\x03")
    process.wait(20)
    os.close(leader)
    wait_for(lambda: rows(project, server)[0]["state"] == "stopped")
    assert "Ctrl-C" in rows(project, server)[0]["reason"]


def test_without_tmux_it_has_one_too(tmp_path: Path, make_server: Any) -> None:
    server = make_server(path=sparse_path(tmp_path / "bin", without=("tmux",)))
    project = project_of(tmp_path / "project", {"ask.py": ASKS}, "python ask.py")
    fab(project, server, "train", "--no-follow")
    wait_for(lambda: rows(project, server)[0]["asking"])
    assert (
        (run_directory(server) / "train.log")
        .read_text()
        .startswith("size 40 120 True 120 40\n[===================.] 19\n")
    )
    fab(project, server, "stop")
    assert rows(project, server)[0]["state"] == "stopped"


def test_the_shape_of_pytorch_cifar(tmp_path: Path, server: LoopbackServer) -> None:
    """Asks stty for its bar's width, downloads into ./data, saves below ./checkpoint; and goes on
    from there."""
    script = """
import os, pathlib
_, columns = os.popen("stty size", "r").read().split()
pathlib.Path("data/set").mkdir(parents=True, exist_ok=True)
pathlib.Path("data/set/batch").write_bytes(os.urandom(1000))
attempt = os.environ["REMOTE_ATTEMPT"]
print("resumed from", os.environ.get("REMOTE_CHECKPOINT"), "attempt", attempt, int(columns))
pathlib.Path("checkpoint").mkdir(exist_ok=True)
pathlib.Path("checkpoint/ckpt.pth").write_text("weights")
if os.environ["REMOTE_ATTEMPT"] == "1":
    raise SystemExit("crashed")
"""
    project = project_of(tmp_path / "project", {"main.py": script}, "python main.py")
    fab(project, server, "train", "--follow", code=10)
    told = fab(project, server, "train", "--resume", "latest", "--follow")
    assert "goes on with its own copy of the code" in told.stderr and "finished" in told.stdout
    there = run_directory(server)
    assert "-main-" in there.name
    assert (
        f"resumed from {there / 'work' / 'checkpoint' / 'ckpt.pth'} attempt 2 120"
        in (there / "train.log").read_text()
    )
    fetched = fab(project, server, "fetch-results")
    assert "epoch" not in fetched.stdout
    run = only_run(project)
    assert (run / "work/checkpoint/ckpt.pth").read_text() == "weights" and (
        run / "work/data/set/batch"
    ).stat().st_size == 1000
    fab(project, server, "clean", "--yes")
    assert not there.exists()


def test_the_shape_of_nanogpt(tmp_path: Path, server: LoopbackServer) -> None:
    """Prepared bytes that git ignores, arguments of its own, and `out/`."""
    files = {
        "train.py": (
            "import sys, os; print(sys.argv[1:], len(open('data/train.bin', 'rb').read()));"
            " os.mkdir('out'); open('out/m.pt', 'w')"
        ),
        "data/prepare.py": "",
        ".gitignore": "*.bin\n/results/\n",
        "data/train.bin": b"x" * 50,
    }
    project = project_of(
        tmp_path / "project", files, "python train.py config/a.py", include="*.bin"
    )
    log = finished(project, server, "--", "--lr", "0.1", "--text=a  b;c")
    assert log == "['config/a.py', '--lr', '0.1', '--text=a  b;c'] 50\n"
    row = rows(project, server)[0]
    assert row["command"] == "python train.py config/a.py" and row["arguments"] == [
        "--lr",
        "0.1",
        "--text=a  b;c",
    ]
    assert "python train.py con" in fab(project, server, "status").stdout
    fab(project, server, "fetch-results")
    assert (only_run(project) / "work/out/m.pt").exists()
    assert (
        "belongs to train, not to status"
        in fab(project, server, "status", "--", "--lr", "1", code=2).stderr
    )


def test_arguments_are_kept_and_changed_on_resume(tmp_path: Path, server: LoopbackServer) -> None:
    project = project_of(
        tmp_path / "project",
        {"a.py": "import sys; print(sys.argv[1:]); sys.exit(1)"},
        "python a.py",
    )
    fab(project, server, "train", "--follow", "--", "--lr", "0.1", code=10)
    fab(project, server, "train", "--resume", "latest", "--follow", code=10)
    fab(project, server, "train", "--resume", "latest", "--follow", "--", "--lr", "0.2", code=10)
    assert (
        run_directory(server) / "train.log"
    ).read_text() == "['--lr', '0.1']\n" * 2 + "['--lr', '0.2']\n"
    assert rows(project, server)[0]["arguments"] == ["--lr", "0.2"]


def test_the_shape_of_the_hydra_template(tmp_path: Path, server: LoopbackServer) -> None:
    """src/train.py, a package below src/, `.hydra/` beside its outputs, the progress file at the
    top."""
    files = {
        "src/train.py": (
            "import os, pathlib, run_progress, mine.net; p = pathlib.Path('outputs/1/.hydra');"
            " p.mkdir(parents=True)\n(p / 'config.yaml').write_text('a: 1');"
            " print(mine.net.__file__)\n"
        ),
        "src/mine/__init__.py": "",
        "src/mine/net.py": "",
        "pyproject.toml": "[project]\nname = 'mine'\n",
        "run_progress.py": "def tell(): pass\n",
    }
    project = project_of(tmp_path / "project", files, "python src/train.py")
    assert (
        finished(project, server)
        == f"{run_directory(server) / 'work' / 'src' / 'mine' / 'net.py'}\n"
    )
    fab(project, server, "fetch-results")
    assert (only_run(project) / "work/outputs/1/.hydra/config.yaml").read_text() == "a: 1"


def test_much_is_asked_about_and_never_left_out(tmp_path: Path, server: LoopbackServer) -> None:
    project = project_of(
        tmp_path / "project",
        {"a.py": "open('big', 'wb').write(bytes(3 << 20))"},
        "python a.py",
        ask_above_mib=1,
    )
    finished(project, server)
    for answer, code, left in ((b"n\r", 2, False), (b"y\r", 0, True)):
        leader, process = fab_on_terminal(project, server, "fetch-results")
        told = read_until(leader, b"Fetch them? [y/N]")
        assert b" are to be fetched, among them work/big (3.0 MiB)" in told
        os.write(leader, answer)
        told = read_until(leader, b"verified by" if left else b"unasked")
        assert process.wait(20) == code and bool(list((project / "results").rglob("big"))) is left
        os.close(leader)
    shutil.rmtree(project / "results")
    fab(project, server, "fetch-results")  # where nobody can be asked it comes
    assert (only_run(project) / "work/big").stat().st_size == 3 << 20


def test_a_line_for_a_shell_is_run_by_bash(tmp_path: Path, server: LoopbackServer) -> None:
    command = "RATE=0.1 python a.py && echo done | tee said"
    project = project_of(
        tmp_path / "project", {"a.py": "import os; print(os.environ['RATE'])"}, command
    )
    assert (
        "command: run by bash, because of && | a variable before it"
        in fab(project, server, "deploy").stdout
    )
    assert finished(project, server) == "0.1\ndone\n"
    assert (run_directory(server) / "work/said").read_text() == "done\n"


def test_a_stop_reaches_what_a_shell_has_started(tmp_path: Path, server: LoopbackServer) -> None:
    """It has its time to save, its output is still read, and what would come next does not
    start."""
    script = (
        "import signal, sys, time\ndef save(*_):\n    time.sleep(1); print('saved'); sys.exit(0)\n"
    )
    script += "signal.signal(signal.SIGTERM, save)\nprint('up', flush=True)\ntime.sleep(300)\n"
    project = project_of(
        tmp_path / "project", {"a.py": script}, "python a.py | tee said; echo next"
    )
    fab(project, server, "train", "--no-follow")
    fab(project, server, "stop")
    assert rows(project, server)[0]["state"] == "stopped"
    assert (run_directory(server) / "train.log").read_text() == "up\nsaved\n"


def test_a_trainer_of_ones_own_is_no_trainer_of_ours(
    tmp_path: Path, server: LoopbackServer
) -> None:
    files = {"trainer/__init__.py": "", "trainer/train.py": "print('mine')\n"}
    project = project_of(tmp_path / "project", files, "python -m trainer.train")
    assert finished(project, server) == "mine\n"


def test_an_open_quote_is_one_line(tmp_path: Path, server: LoopbackServer) -> None:
    project = project_of(tmp_path / "project", {"a.py": ""}, "python 'a.py")
    done = fab(project, server, "deploy", code=2)
    assert (
        "remote.command can't be read (no closing quotation)" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


def test_a_python_of_another_name_is_python_for_a_shell(
    tmp_path: Path, server: LoopbackServer
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3.x").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python3.x").chmod(0o755)
    project = project_of(tmp_path / "project", {"a.py": "print(1 + 1)"}, "true && python a.py")
    assert finished(project, server) == "2\n"
