"""A task in this process, so that hundreds of faults can be tried: what it says, its exit code, and
the state that it leaves.

lab = Lab(server, tmp_path)
done = lab.task("deploy")                       # Done(code, out, err)
lab.relay.cut_after(5000, "up"); assert lab.task("deploy").code == 4
lab.server_state() == another_lab.server_state()
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from remote import tasks
from remote.link import session as link_session
from remote.link.session import Project
from remote.loopback import LoopbackServer, Route
from remote.project.settings import parse_settings
from remote.ssh.target import Target
from remote.tasks.command_line import LINE
from tests.support.project import Content, make_tree, snapshot
from tests.support.proxy import Direction, Relay
from tests.support.sshd import PROGRAM

STUB = "echo up; echo $$ >> ../started; head -c 300000 /dev/zero | tr '\\0' x > big; echo done\n"
FILES: Mapping[str, Content] = {
    "train.sh": STUB,
    "data.bin": b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(4000)),
    "package/__init__.py": "",
    "package/text.py": "value = 1\n" * 3000,
    "a name with blanks": "x",
}
SETTINGS: Mapping[str, Any] = {
    "requirements": "none",
    "command": "sh train.sh",
    "results": "big",
    "project": "p",
    "timeout_s": 30.0,  # a busy machine may stand still for seconds
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "deploy": {},
    "train": {"no_follow": True},
    "fetch_results": {},
    "status": {},
    "logs": {},
    "stop": {},
    "check_gpu": {},
    "clean": {},
    "upload_data": {"name": None},
    "doctor": {},
    "sweep": {},
    "wait": {},
    "keep": {},
}
WITHOUT_JSON = ("train", "stop", "sweep")
TASKS = {task.name.replace("-", "_"): task for group in tasks.GROUPS.values() for task in group}
LOST, UNREACHABLE = 4, 3


@dataclass(frozen=True)
class Done:
    """How a task ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@dataclass
class Lab:
    """A project here and a root of its own on the server; several labs may share one server."""

    server: LoopbackServer
    directory: Path
    relay: Relay | None = None
    files: Mapping[str, Content] = field(default_factory=lambda: FILES)
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = "p"
    json: bool = False

    def __post_init__(self) -> None:
        self.project = make_tree(self.directory / self.name, self.files)

    @property
    def root(self) -> Path:
        return self.server.home / "projects" / self.name

    @property
    def results(self) -> Path:
        return self.project / "results"

    @property
    def route(self) -> LoopbackServer | Route:
        return self.server.via(self.relay.port) if self.relay else self.server

    def target(self, route: LoopbackServer | Route | None = None) -> Target:
        timeout_s = float(self.all_settings["timeout_s"])
        config = str((route or self.route).ssh_config)
        return Target(
            "loopback", ssh_config=config, interactive=False, timeout_s=timeout_s, program=PROGRAM
        )

    @property
    def all_settings(self) -> dict[str, Any]:
        return {**SETTINGS, "ssh": PROGRAM, "root": f"~/projects/{self.name}", **self.settings}

    def parsed_project(self) -> Project:
        return Project(self.project, parse_settings(self.all_settings, self.project))

    def task(
        self, name: str, /, route: LoopbackServer | Route | None = None, **options: Any
    ) -> Done:
        return run_task(
            name, self.project, self.all_settings, self.target(route), self.json, **options
        )

    def rows(self) -> list[dict[str, Any]]:
        """What `status --json` tells, past the relay."""
        told = run_task(
            "status",
            self.project,
            {**self.all_settings, "timeout_s": 20.0},
            self.target(self.server),
            True,
        )
        found: list[dict[str, Any]] = json.loads(told.out)
        return found

    def state_file(self, run: str) -> Path:
        return self.root / "runs" / run / "state.json"

    def server_state(self) -> dict[str, str]:
        """All that a deploy leaves and that must be the same however often it was cut."""
        found = snapshot(self.root) if self.root.exists() else {}
        kept = {
            name: what
            for name, what in found.items()
            if name.split("/")[0] in ("agent", "releases", "project.json")
        }
        kept["current"] = (
            os.readlink(self.root / "current") if (self.root / "current").is_symlink() else "–"
        )
        kept["environments"] = ",".join(
            sorted(path.parent.name for path in self.root.glob("env/*/ready"))
        )
        # The compiled form of the agent comes after the laptop has gone, or with the next login.
        return {
            name: what
            for name, what in kept.items()
            if "/.incoming/" not in name and not re.match(r"agent/\w+\.cpython", name)
        }


def run_task(
    name: str,
    project: Path,
    settings: Mapping[str, Any],
    targets: Target | Sequence[Target],
    as_json: bool,
    /,
    words: Sequence[str] = (),
    **options: Any,
) -> Done:
    """As fabfile.py calls it, with `words` behind `--`. A bug's traceback would come out as an
    exception."""

    class Context:
        config: Any = {"remote": dict(settings)}  # noqa: RUF012  as Fabric gives it

    out, err = io.StringIO(), io.StringIO()
    begun = time.monotonic()
    LINE.targets = [targets] if isinstance(targets, Target) else list(targets)
    LINE.project, LINE.words = project, list(words)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        asked = {
            **OPTIONS[name],
            **options,
            **({"json": True} if as_json and name not in WITHOUT_JSON else {}),
        }
        if asked.get("follow"):
            asked.pop("no_follow", None)
        code = 0
        try:
            TASKS[name].body(Context(), **asked)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Done(code, out.getvalue(), err.getvalue(), time.monotonic() - begun)


@contextlib.contextmanager
def short_pauses(seconds: float = 0.02) -> Iterator[None]:
    """Reconnects that do not wait seconds for a network that is well again at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link_session, "PAUSES_S", (seconds,) * 6)
        yield


def spread(total: int, count: int) -> list[int]:
    """`count` cut points over `total` bytes, the first and last bytes among them."""
    return sorted(
        {min(total - 1, round(total * number / max(1, count - 1))) for number in range(count)}
    )


@contextlib.contextmanager
def stalling(relay: Relay, after: int, direction: Direction) -> Iterator[None]:
    """Both ways stall once `after` more bytes have gone in `direction`."""
    relay.stall_after(after, direction)
    try:
        yield
    finally:
        relay.mend()


def wait_until(condition: Any, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@contextlib.contextmanager
def mount_small_disk(place: Path, size_mib: int) -> Iterator[Path]:
    """A file system of that size. Skips the test where none can be mounted."""
    place.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(argv, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)
