"""One project and several servers of this machine, named a, b, …: what `fab -H a,b` does.

lab = Several(make_server(), tmp_path)
lab.others = [Lab(make_server(), tmp_path / "second")]
lab.on("ab", "status")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from remote.loopback import LoopbackServer
from remote.ssh.target import Target
from tests.support.faults import Done, Lab, run_task


@dataclass
class Several(Lab):
    others: list[Lab] = field(default_factory=list)

    @property
    def labs(self) -> list[Lab]:
        return [self, *self.others]

    @property
    def servers(self) -> list[LoopbackServer]:
        return [lab.server for lab in self.labs]

    @property
    def second(self) -> Lab:
        return self.others[0]

    def targets(self, names: str) -> list[Target]:
        made = []
        for name, server in zip("abcdefgh", self.servers, strict=False):
            config = self.directory / f"config-{name}"
            text = Path(server.ssh_config).read_text().replace("Host loopback", f"Host {name}")
            config.write_text(text)
            made.append(replace(self.target(), spec=name, ssh_config=str(config)))
        return [target for target in made if target.spec in names]

    def on(self, names: str, task: str, words: Sequence[str] = (), **options: Any) -> Done:
        as_json = options.pop("json", False)
        targets = self.targets(names)
        return run_task(
            task, self.project, self.all_settings, targets, as_json, words=words, **options
        )
