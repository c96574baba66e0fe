"""`demo`: the whole way on this computer. An SSH server on loopback, a server directory of its own,
the real agent."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from remote.errors import ServerUnfit, UsageError
from remote.project.options import FetchOptions, TrainOptions
from remote.tasks.entry import Work, task
from remote.tasks.prepare import deploy_all
from remote.tasks.results import fetch
from remote.tasks.training import start


@task(
    server=False,
    help={
        "data": "a CIFAR-10 archive or a folder of images; without it, synthetic images are made",
        "keep": "keep the demo's server directory",
    },
)
def demo(work: Work, data: str | None = None, keep: bool = False) -> int:
    """
    Show the whole way on this computer, without any server.

    An SSH server on loopback, then deploy, train and fetch-results against it.

    Exit codes: 0 done, else that of the command that failed.
    """
    require_trainer(work)
    options = TrainOptions("demo", data=data_path(data), follow=True)
    from remote.loopback import LoopbackServer, Serving  # Unix alone

    directory = Path(tempfile.mkdtemp(prefix="demo-server-"))
    if any(importlib.util.find_spec(name) is None for name in ("torch", "pytorch_lightning")):
        work.display.note(
            f"this python has no PyTorch: the demo installs it in {directory}, on Linux 5.6 GB;"
            " `make demo` keeps it in .venv"
        )
    home = directory / "home"
    home.mkdir()
    try:
        with LoopbackServer(directory / "ssh", Serving(home=home)) as server:
            work.display.line(
                f"demo: an SSH server ({server.kind}) on {server.host}:{server.port}, its home in"
                f" {home}"
            )
            code = play(work_on(work, str(server.ssh_config)), data, options)
    finally:
        end_all(home)
        if keep:
            work.display.note(f"the demo's server directory is kept: {directory}")
        else:
            remove(directory)
    if not code:
        work.display.line()
        work.display.line(
            "That was the whole way. With a server of your own: fab -H user@host deploy, train,"
            " fetch-results"
        )
    return code


def require_trainer(work: Work) -> None:
    if os.name == "nt":
        raise ServerUnfit(
            "the demo's server needs Linux or macOS",
            remedy="on Windows run it in WSL, or deploy to a real server",
        )
    if not work.project.has_own_trainer:
        text = "the demo runs our trainer, and there is none in this project"
        raise UsageError(text, remedy="run it in a clone of remote-train")


def work_on(work: Work, ssh_config: str) -> Work:
    """For the server here: a directory of its own, this python."""
    from remote.ssh.target import Target

    settings = work.project.settings
    timeout_s, root = settings.timeout_s, f"~/projects/{settings.project}"
    target = Target("loopback", ssh_config=ssh_config, interactive=False, timeout_s=timeout_s)
    there = dataclasses.replace(work, targets=[target])
    return there.with_settings(python=sys.executable, root=root)


def play(work: Work, data: str | None, options: TrainOptions) -> int:
    steps: dict[str, Callable[[], int]] = {
        "deploy": lambda: deploy_all(work, refresh=False),
        f"train --recipe demo --data {data or 'synthetic'}": lambda: start(work, options),
        "fetch-results": lambda: fetch(work, FetchOptions()),
    }
    for words, step in steps.items():
        work.display.line()
        work.display.line(f"$ fab -H {work.targets[0].spec} {words}")
        if code := step():
            return code
    return 0


def remove(directory: Path) -> None:
    """Once more where something still wrote there meanwhile."""
    for _ in range(5):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            break
        time.sleep(0.5)
        end_all(directory / "home")


def end_all(home: Path) -> None:
    """A build or a training that was left by Ctrl-C must not outlive the server directory that it
    writes to."""
    for build in home.glob("projects/*/env/*/build.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(build.read_text())
            if told["phase"] == "running":
                os.killpg(int(told["pid"]), signal.SIGKILL)
    for state in home.glob("projects/*/runs/*/state.json"):
        try:
            told = json.loads(state.read_text())
            if told.get("state") in ("queued", "running"):
                os.kill(int(told["supervisor_pid"]), signal.SIGTERM)
                time.sleep(2)
                os.killpg(int(told["pid"]), signal.SIGKILL)
        except (OSError, ValueError, KeyError, TypeError):
            continue


def data_path(data: str | None) -> str:
    if data is None:
        return "synthetic"
    path = Path(data).expanduser()
    if not path.exists():
        raise UsageError(
            f"--data {data}: no such file or directory",
            remedy="give a CIFAR-10 archive, or a folder, zip, tar or CSV of images",
        )
    return str(path.resolve())
