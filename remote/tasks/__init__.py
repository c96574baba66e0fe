"""The tasks as `fab --list` shows them: arguments in, one typed call into the rooms below, an
expected error as one line with an exit code.

A project's fabfile.py is three lines: `from remote.tasks import tasks` and `ns =
tasks(Path(__file__).parent)`.
"""

from __future__ import annotations

from pathlib import Path

from invoke.collection import Collection

from remote.project.settings import defaults
from remote.tasks import command_line, demo, prepare, results, sweeps, training
from remote.tasks.command_line import LINE

TASKS = (
    prepare.deploy,
    training.train,
    results.fetch_results,
    training.status,
    training.follow,
    training.logs,
    training.attach,
    results.tensorboard,
    training.stop,
    training.wait,
    sweeps.sweep,
    prepare.upload_data,
    prepare.check_gpu,
    prepare.doctor,
    prepare.setup_key,
    prepare.logout,
    prepare.clean,
    results.submit,
    results.verify_submission,
    demo.demo,
)


def tasks(project: Path) -> Collection:
    """All of them, for the project whose fabfile asks: code, settings and results are those of its
    directory."""
    LINE.project = project.resolve()
    collection = Collection(*TASKS)
    collection.configure({"remote": defaults()})
    command_line.take_over(list(collection.task_names))
    return collection
