"""`remote-train`: fab itself, which in a folder without a fabfile has our tasks all the same."""

from __future__ import annotations

from pathlib import Path

import fabric.main
from fabric import Config, Executor
from invoke.exceptions import Exit

from remote.errors import UsageError
from remote.project.settings_file import read_mapping
from remote.screen.language import choose_language, translate_error
from remote.screen.text import as_typed, call_it
from remote.tasks import tasks


class Program(fabric.main.Fab):  # type: ignore[misc]
    """The project is where fabric.yaml is, here or above, as with a fabfile."""

    def create_config(self) -> None:
        for place in (Path("/etc/fabric.yaml"), Path.home() / ".fabric.yaml"):
            try:
                read_mapping(place, str(place))
            except UsageError as error:
                raise Exit(as_typed(translate_error(error)), error.exit_code) from None
        super().create_config()

    def load_collection(self) -> None:
        here = Path.cwd()
        folders = (here, *here.parents)
        if self.args["collection"].value or any((f / "fabfile.py").exists() for f in folders):
            super().load_collection()
            return
        project = next((f for f in folders if (f / "fabric.yaml").exists()), here)
        self.collection = tasks(project)  # says in one line what is wrong with fabric.yaml
        self.config.set_project_location(str(project))
        self.config.load_project()


def main() -> None:
    call_it("remote-train")
    choose_language("auto")
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
