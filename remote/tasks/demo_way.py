"""`fab demo`: the whole way on this computer. An SSH server on loopback, a server directory of its
own, the real agent."""

from __future__ import annotations

import dataclasses
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
from remote.link.session import Project
from remote.runs.request import TrainOptions
from remote.screen.display import Display
from remote.ssh.target import Target
from remote.tasks.entry import Work
from remote.tasks.prepare import deploy_all
from remote.tasks.results import FetchOptions, fetch
from remote.tasks.training import start


def demo(project: Project, display: Display, data: str | None, keep: bool) -> int:
    """Deploy, train and fetch-results against a server started here. Returns the exit code of the
    first that fails."""
    if os.name == "nt":
        raise ServerUnfit(
            "the demo's server needs Linux or macOS",
            remedy="on Windows run it in WSL, or deploy to a real server",
        )
    where = data_path(data)
    from remote.loopback import LoopbackServer, Serving

    directory = Path(tempfile.mkdtemp(prefix="demo-server-"))
    home = directory / "home"
    home.mkdir()
    try:
        with LoopbackServer(directory / "ssh", Serving(home=home)) as server:
            display.line(
                f"demo: an SSH server ({server.kind}) on {server.host}:{server.port}, its home in"
                f" {home}"
            )
            settings = dataclasses.replace(
                project.settings,
                python=sys.executable,
                root="~/projects/" + project.settings.project,
            )
            own = dataclasses.replace(project, settings=settings)
            target = Target(
                "loopback",
                ssh_config=str(server.ssh_config),
                interactive=False,
                timeout_s=settings.timeout_s,
            )
            work = Work("demo", own, [target], (), display)
            steps: dict[str, Callable[[], int]] = {
                "deploy": lambda: deploy_all(work, refresh=False),
                f"train --recipe demo --data {data or 'synthetic'}": lambda: start(
                    work, TrainOptions("demo", data=where, follow=True)
                ),
                "fetch-results": lambda: fetch(work, FetchOptions()),
            }
            for words, step in steps.items():
                display.line()
                display.line(f"$ fab -H {target.spec} {words}")
                if code := step():
                    return code
    finally:
        end_runs(home)
        if keep:
            display.note(f"the demo's server directory is kept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    display.line()
    display.line(
        "That was the whole way. With a server of your own: fab -H user@host deploy, train,"
        " fetch-results"
    )
    return 0


def end_runs(home: Path) -> None:
    """A training that was left by Ctrl-C must not outlive the server directory that it writes
    to."""
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
