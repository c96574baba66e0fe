"""One training on several hosts: two servers of this machine, which share nothing but its network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.server.test_sweep import Two
from tests.support.faults import Done, Lab, wait_until
from tests.support.sshd import MakeServer

QUICK = {"REMOTE_SILENCE_S": "4", "REMOTE_RESTART_S": "0.2"}
TELL = 'echo "$NODE_RANK of $NNODES at $MASTER_ADDR:$MASTER_PORT by $GLOO_SOCKET_IFNAME"\n'


class Group(Two):
    """As `fab -H a,b` would do it."""

    def train(self, script: str, **options: Any) -> Done:
        (self.project / "train.sh").write_text(script)
        return self.on("ab", "train", **{"nodes": 2, "follow": True, **options})

    def both(self) -> list[dict[str, Any]]:
        """The newest run's rows, the first host's first."""
        rows = json.loads(self.on("ab", "status", json=True).out)
        newest = [row for row in rows if row["run"] == rows[0]["run"]]
        return sorted(newest, key=lambda row: row["rank"])

    def run_dirs(self) -> list[Path]:
        run = self.both()[0]["run"]
        return [lab.root / "runs" / run for lab in (self, self.second)]


@pytest.fixture
def group(make_server: MakeServer, tmp_path: Path) -> Group:
    group = Group(make_server(env=QUICK), tmp_path)
    group.second = Lab(make_server(env=QUICK), tmp_path / "second")
    return group


def test_each_host_knows_its_place_and_all_logs_come_back(group: Group) -> None:
    done = group.train(TELL)
    assert done.code == 0, done
    one, two = group.both()
    assert (one["state"], two["state"]) == ("finished", "finished")
