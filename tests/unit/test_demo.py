"""What the demo leaves behind: nothing, though it was left in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from remote.tasks.demo import end_all, remove

WRITES = """
import os, sys, time
while True:
    os.makedirs(sys.argv[1] + "/venv", exist_ok=True)
    open(f"{sys.argv[1]}/venv/{time.time()}", "w").close()
"""


def test_a_build_that_goes_on_writing_is_ended_with_its_directory(tmp_path: Path) -> None:
    env = tmp_path / "demo/home/projects/p/env/key"
    env.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", WRITES, str(env)], start_new_session=True
    ) as builder:
        state = {"phase": "running", "pid": builder.pid}
        (env / "build.json").write_text(json.dumps(state))
        end_all(tmp_path / "demo/home")
        assert builder.wait(10) == -9
    remove(tmp_path / "demo")
    assert not os.path.exists(tmp_path / "demo")
