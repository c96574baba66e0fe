"""A project here, a server there, and an index of packages that the server's pip is set to."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from remote.deploy.deploy import Deployed, deploy
from remote.link.session import Project, Session
from remote.loopback import LoopbackServer
from remote.records import Settings
from remote.screen.display import Display
from remote.ssh.target import Target
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.project import make_tree
from tests.support.wheels import IMPORTS, Index


class Scene:
    def __init__(self, server: LoopbackServer, index: Index, directory: Path) -> None:
        self.server, self.index = server, index
        self.project = make_tree(directory / "project", {"train.py": "print('training')\n"})
        self.shown = ""
        self.requests = 0
        self.use_index(index.url)

    def use_index(self, url: str) -> None:
        lines = f"[global]\nindex-url = {url}\nretries = 1\nno-cache-dir = true\n"
        make_tree(self.server.home, {".config/pip/pip.conf": lines})

    def use_gpus(self, *gpus: FakeGpu, driver: str = "580.65.06") -> None:
        write_nvidia_smi(Path(self.server.path) / "nvidia-smi", gpus, driver=driver)

    def deploy(self, text: str, refresh: bool = False, **settings: Any) -> Deployed:
        (self.project / "requirements.txt").write_text(text)
        options = {
            "root": "~/projects/p",
            "project": "p",
            "requirements": "requirements.txt",
            "timeout_s": 20.0,
            **settings,
        }
        output = io.StringIO()
        target = Target(
            "loopback", ssh_config=str(self.server.ssh_config), interactive=False, timeout_s=20
        )
        try:
            with Session(
                target,
                Project(self.project, Settings(**options)),
                Display(out=output, notes=output),
            ) as session:
                deployed = deploy(session, refresh=refresh)
        finally:
            self.requests = session.requests
            self.shown = output.getvalue()
        return deployed

    @property
    def environments(self) -> Path:
        return self.server.home / "projects" / "p" / "env"

    def only_environment(self) -> Path:
        (found,) = [path for path in self.environments.iterdir() if path.is_dir()]
        return found

    def build_state(self) -> dict[str, Any]:
        return dict(json.loads((self.only_environment() / "build.json").read_text()))

    @property
    def imports(self) -> int:
        """How often torch was imported on the server."""
        place = self.server.home / IMPORTS
        return len(place.read_text().splitlines()) if place.exists() else 0

    def fetched(self) -> list[str]:
        """The packages whose wheels were asked for, to resolve or to install."""
        files = [path for path in self.index.asked if path.startswith("/files/")]
        return sorted({path.split("/")[-1].split("-")[0] for path in files})
