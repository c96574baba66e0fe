"""The tasks as `fab --list` shows them: arguments in, one typed call into the rooms below, an
expected error as one line with an exit code.

A project's fabfile.py is three lines: `from remote.tasks import tasks` and `ns =
tasks(Path(__file__).parent)`.
"""

from __future__ import annotations

import os
from pathlib import Path

from invoke.collection import Collection
from invoke.exceptions import Exit

from remote.errors import UsageError
from remote.project.settings import take_environment
from remote.project.settings_file import read_remote
from remote.screen.language import choose_language, translate, translate_error, translate_paragraphs
from remote.screen.text import as_typed
from remote.tasks import command_line, demo, looking, prepare, results, sweeps, training
from remote.tasks.command_line import LINE

GROUPS = {
    "Three commands": (prepare.deploy, training.train, results.fetch_results),
    "While it trains": (
        looking.status,
        looking.follow,
        looking.watch,
        looking.logs,
        training.attach,
        results.tensorboard,
        training.stop,
        looking.wait,
        sweeps.sweep,
    ),
    "Servers and data": (
        prepare.doctor,
        prepare.check_gpu,
        prepare.upload_data,
        training.keep,
        prepare.setup_key,
        prepare.logout,
        prepare.clean,
    ),
    "To hand in": (results.submit, results.verify_submission),
    "To try it here": (demo.demo,),
}


def tasks(project: Path) -> Collection:
    """All of them, for the project whose fabfile asks: code, settings and results are those of its
    directory."""
    LINE.project = project.resolve()
    LINE.environment = take_environment(os.environ)
    wanted = LINE.environment.get("language")
    choose_language(wanted or "auto")
    try:
        settings = read_remote(LINE.project / "fabric.yaml")
    except UsageError as error:
        raise Exit(as_typed(translate_error(error)), error.exit_code) from None
    choose_language(wanted or settings.get("language") or "auto")
    ours = [task for group in GROUPS.values() for task in group]
    for task in ours:
        task.__doc__ = as_typed(translate_paragraphs(task.__doc__ or ""))
        task.help = {name: as_typed(translate(text)) for name, text in task.help.items()}
    collection = Collection(*ours)
    command_line.take_over(
        {title: [task.name.replace("_", "-") for task in group] for title, group in GROUPS.items()}
    )
    return collection
