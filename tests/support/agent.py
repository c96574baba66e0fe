"""The agent on a test's server: release and run in a few words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from remote.deploy.code import plan_release
from remote.link.decoding import decode
from remote.link.facts import Facts
from remote.link.link import Link, Upload
from remote.loopback import LoopbackServer, Route
from remote.records import Release
from remote.release.release import build_release, upload_frames
from remote.ssh.login import connect
from remote.ssh.target import Target
from tests.support.sshd import PROGRAM

ROOT = "~/projects/p"
OWNER: dict[str, Any] = {"project": "p", "identity": None}


@contextmanager
def agent(
    server: LoopbackServer | Route, root: str = ROOT, timeout_s: float = 20.0
) -> Iterator[Link]:
    """A link to the agent on `server`."""
    with (
        connect(
            Target(
                "loopback",
                ssh_config=str(server.ssh_config),
                interactive=False,
                timeout_s=timeout_s,
                program=PROGRAM,
            )
        ) as connection,
        Link(connection, root) as link,
    ):
        yield link


def facts(link: Link, release: Release | None = None, **options: Any) -> dict[str, Any]:
    if release is not None:
        options |= {"tree": release.tree, "manifest": release.entries}
    return link.call("facts", root=link.root, **(OWNER | options))


def frames_of(project: Path, release: Release) -> Upload:
    everything = [entry.sha256 for entry in release.entries]

    def frames(ready: dict[str, Any]) -> Any:
        missing = ready["missing"]
        lacking = frozenset(everything if missing is None else missing)
        return upload_frames(project, release.entries, lacking)

    return frames


def put(link: Link, project: Path) -> Release:
    """Deploy the code of `project`; returns the release."""
    release = build_release(project, 50)
    plan = plan_release(decode(Facts, facts(link, release)), release)
    if plan.action == "send":
        link.call(
            "release_put",
            None,
            frames_of(project, release),
            root=link.root,
            tree=release.tree,
            manifest=release.entries,
            origin="",
            who="test",
            **OWNER,
        )
    return release


def start(
    link: Link, run: str, release: Release, *argv: str, env: Any = None, **asked: Any
) -> dict[str, Any]:
    request = {
        "release": release.tree,
        "argv": list(argv),
        "finish": "exit",
        "created": time.time(),
        "python": "",
    } | asked
    return link.call("run_start", root=link.root, run=run, asked=request, env=env, **OWNER)


def follow(
    link: Link, run: str, until: str = "end", **options: Any
) -> tuple[dict[str, Any], bytes]:
    """The run as described at the end, and the log that was told."""
    log = bytearray()

    def event(fields: dict[str, Any], blob: bytes) -> None:
        if "log" in fields:
            log.extend(blob)

    answer = link.call("follow", event, root=link.root, run=run, until=until, **options)
    return answer["described"], bytes(log)


def root_of(server: LoopbackServer) -> Path:
    return server.home / "projects" / "p"
