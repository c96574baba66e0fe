"""What requirements would bring, asked of pip or uv before anything is installed: the laptop then
knows whether torch comes, how much room is needed, and which python can have it all."""

import os
import shutil
import tempfile
import time
from typing import Any, Dict, List, Optional, Tuple

from remote.agent.environments import installers
from remote.agent.environments.build_failures import Place, classify, contradicts, depends_on_python
from remote.agent.environments.commands import Commands
from remote.agent.environments.interpreters import build_environment, describe
from remote.agent.environments.python_places import glibc_version
from remote.agent.root.calls import Call, operation
from remote.agent.shared.build_plan import BuildPlan
from remote.agent.shared.reading import read

LIMIT_S = 900.0
"""Without a word: an index without metadata is read wheel by wheel."""
MAX_PYTHONS = 4
ASIDE = ".resolve-"


@operation("environment_resolve")
def environment_resolve(call: Call, plan: Dict[str, Any]) -> Dict[str, Any]:
    """`plan`: a BuildPlan with its `pythons`. That of an overlay: what its python has stays.

    python and packages (canonical name → version) are of the first that can have it all; late: the
    lines that need another package to be built; failed: [python, why not, remedy] of those before.
    `packages` is null where nothing could be told: the build will say why.
    """
    layout = call.layout
    beside = layout.root if os.path.isdir(layout.root) else None
    directory = tempfile.mkdtemp(prefix=ASIDE, dir=beside)
    try:
        return Resolution(call, directory, read(BuildPlan, plan)).find()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Resolution:
    def __init__(self, call: Call, directory: str, plan: BuildPlan) -> None:
        self.call = call
        self.plan = plan
        self.on_top = plan.kind == "overlay"
        self.started = self.told = time.monotonic()
        self.commands = Commands(directory, "resolve.log", self.hear, call.alive, LIMIT_S)
        self.installer = installers.Installer(
            self.commands, build_environment(directory), plan.helpers, self.on_top
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
        self.tell("resolving the requirements")
        failed: List[List[str]] = []
        for python in self.plan.pythons[:MAX_PYTHONS]:
            try:
                packages, late = self.resolve(python)
                return {"python": python, "packages": packages, "late": late, "failed": failed}
            except installers.InstallerMissing as missing:
                failed += [] if self.on_top else [[python, str(missing)]]
            except installers.Failed as failure:
                if not self.call.alive():
                    raise BrokenPipeError from None
                text = self.commands.output(failure.log_from)
                plan = self.plan._replace(version=describe(python).version or "")
                place = Place(plan, glibc=glibc_version())
                its_own = depends_on_python(text) or (self.on_top and contradicts(text))
                if its_own or not self.on_top:
                    failed.append([python, *classify(text, place)])
                if not its_own:
                    break
        return {"python": None, "packages": None, "late": [], "failed": failed}

    def resolve(self, python: str) -> Tuple[Dict[str, str], List[str]]:
        """The packages, and the lines that can't be judged before another one is there."""
        torch = self.plan.torch.source if self.on_top else ""
        options, limits = [*self.plan.options, *filter(None, [torch])], self.plan.constraints
        return self.installer.apart(
            self.plan.install,
            lambda lines: self.installer.resolve(python, [*options, *lines], limits),
        )
