"""What requirements would bring, asked of pip or uv before anything is installed: the laptop then
knows whether torch comes, how much room is needed, and which python can have it all."""

import os
import platform
import shutil
import tempfile
import time
from typing import Any, Dict, List, Optional

from remote.agent.calls import Call, operation
from remote.agent.environments import installers
from remote.agent.environments.build_failures import (
    Place,
    classify,
    depends_on_python,
    missing_module,
)
from remote.agent.environments.commands import Commands
from remote.agent.environments.environments import check_lines
from remote.agent.environments.interpreters import build_environment, describe
from remote.agent.root.paths import Layout, resolve_root

LIMIT_S = 900.0
"""For one command: an index without metadata is read wheel by wheel."""
MAX_PYTHONS = 4
LEFT_AFTER_S = 86400.0


@operation("environment_resolve")
def environment_resolve(call: Call, root: str, plan: Dict[str, Any]) -> Dict[str, Any]:
    """`plan`: pythons, the first choice first; install, constraints, options, helpers.

    python and packages (canonical name → version) are of the first that can have it all; late: the
    lines that need another package to be built; failed: [python, why not] of those before it.
    `packages` is null where nothing could be told: the build will say why.
    """
    check_lines(plan)
    layout = Layout(resolve_root(root))
    _remove_leftovers(layout.root)
    beside = layout.root if os.path.isdir(layout.root) else None
    directory = tempfile.mkdtemp(prefix=".resolve-", dir=beside)
    try:
        return Resolution(call, directory, plan).find()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _remove_leftovers(root: str) -> None:
    """Of a login that was cut off while it resolved."""
    try:
        old = [entry for entry in os.scandir(root) if entry.name.startswith(".resolve-")]
        for entry in old:
            if time.time() - entry.stat().st_mtime > LEFT_AFTER_S:
                shutil.rmtree(entry.path, ignore_errors=True)
    except OSError:
        pass


class Resolution:
    def __init__(self, call: Call, directory: str, plan: Dict[str, Any]) -> None:
        self.call = call
        self.plan = plan
        self.started = self.told = time.monotonic()
        self.commands = Commands(directory, "resolve.log", self.hear, call.alive, LIMIT_S)
        self.installer = installers.Installer(
            self.commands, build_environment(directory), list(plan.get("helpers") or []), uv=True
        )

    def hear(self, line: Optional[str], amount: Optional[List[int]]) -> None:
        now = time.monotonic()
        if now - self.told >= 0.5:
            self.told = now
            self.tell(line or "")

    def tell(self, line: str) -> None:
        seconds = round(time.monotonic() - self.started, 1)
        self.call.event(step="resolve", line=line, seconds=seconds)

    def find(self) -> Dict[str, Any]:
        self.tell("asking what the requirements bring along")
        failed: List[List[str]] = []
        for python in list(self.plan.get("pythons") or [])[:MAX_PYTHONS]:
            lines = list(self.plan.get("install") or [])
            late: List[str] = []
            while True:
                start = self.commands.written
                try:
                    packages = self.resolve(python, lines)
                    return {"python": python, "packages": packages, "late": late, "failed": failed}
                except installers.InstallerMissing as missing:
                    failed.append([python, str(missing)])
                    break
                except installers.Failed:
                    text = self.commands.output(start)
                if not self.call.alive():
                    raise BrokenPipeError
                needing = missing_module(text)
                moved = [
                    line for line in lines if needing and installers.name_of(line) == needing[0]
                ]
                if moved:
                    lines, late = [line for line in lines if line not in moved], late + moved
                    continue
                failed.append([python, classify(text, self.place(python)).message])
                if not depends_on_python(text):
                    return {"python": None, "packages": None, "late": [], "failed": failed}
                break
        return {"python": None, "packages": None, "late": [], "failed": failed}

    def resolve(self, python: str, lines: List[str]) -> Dict[str, str]:
        options = list(self.plan.get("options") or [])
        limits = list(self.plan.get("constraints") or [])
        return self.installer.resolve(python, [*options, *lines], limits)

    def place(self, python: str) -> Place:
        version = describe(python).get("version")
        return Place(log=self.commands.log, python=version, glibc=platform.libc_ver()[1] or None)
