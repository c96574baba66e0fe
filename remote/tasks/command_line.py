"""What stands on fab's command line beside the task: hosts, identities, ssh_config.

Fabric would build a connection of its own for every host, reading ssh_config files that crash it
and one host after the other. Our tasks take the hosts over while the fabfile is imported, so that
Fabric runs each task once and logs in nowhere; tasks of the user's own in the same fabfile are left
as they are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from remote.ssh.target import Target, targets_from_fabric


@dataclass
class TaskLine:
    """What every task needs beside its own options; `project`: the directory whose fabfile.py is in
    use."""

    targets: list[Target] = field(default_factory=list)
    # What follows `--`, word for word.
    words: list[str] = field(default_factory=list)
    project: Path = field(default_factory=Path.cwd)


LINE = TaskLine()


def take_over(task_names: Collection[str]) -> None:
    """Called by a fabfile with the names of its tasks that are ours. Does nothing where fab is not
    running one of them."""
    from fabric.main import program

    core = getattr(program, "core", None)
    if not core:
        return
    words = list(getattr(core, "unparsed", None) or [])
    if not words or words[0].replace("_", "-") not in {
        name.replace("_", "-") for name in task_names
    }:
        return
    LINE.targets = targets_from_fabric()
    if core.remainder:
        # Fabric would run it as a command of its own, after joining the words.
        argv = list(program.argv)
        LINE.words, core.remainder = argv[argv.index("--") + 1 :], ""
    arguments = core[0].args
    for name in ("hosts", "ssh-config", "identity"):
        if name in arguments:
            arguments[name]._value = None
