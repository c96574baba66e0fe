"""`remote-train`: fab itself, which in a folder without a fabfile has our tasks all the same."""

from __future__ import annotations

from pathlib import Path

import fabric.main
from fabric import Config, Executor

from remote.tasks import tasks


class Program(fabric.main.Fab):  # type: ignore[misc]
    """Settings are those of fabric.yaml in the same folder, as with a fabfile."""

    def load_collection(self) -> None:
        here = Path.cwd()
        folders = (here, *here.parents)
        if self.args["collection"].value or any((f / "fabfile.py").exists() for f in folders):
            super().load_collection()
            return
        self.collection = tasks(here)  # says in one line what is wrong with fabric.yaml
        self.config.set_project_location(str(here))
        self.config.load_project()


def main() -> None:
    # The tasks ask Fabric's own program for what was typed before them.
    fabric.main.program = Program(
        name="Fabric",
        version=fabric.__version__,
        executor_class=Executor,
        config_class=Config,
        binary="remote-train",
        binary_names=["remote-train"],
    )
    fabric.main.program.run()
