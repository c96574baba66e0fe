"""A laptop may run Windows: what the orchestrator imports there has none of Unix's modules
and calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import os, signal, sys
import asyncio, fabric, invoke, paramiko, rich.console, subprocess, yaml  # which know Windows
for module, names in (
    (os, "getuid geteuid getgid fork killpg setsid uname openpty statvfs sched_getaffinity"),
    (signal, "SIGKILL SIGHUP SIGALRM SIGWINCH pthread_kill"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ("fcntl", "pwd", "grp", "termios", "resource", "tty", "pty", "syslog"):
    sys.modules[name] = None
import importlib, pkgutil
import remote
for found in pkgutil.walk_packages(remote.__path__, "remote."):
    name = found.name
    ours = not name.startswith("remote.agent.") or name.startswith("remote.agent.shared")
    # invoke asks sys.platform, which says Linux here
    if ours and not name.startswith(("remote.tasks", "remote.__main__")):
        importlib.import_module(found.name)
import trainer.config
from remote.ssh.openssh import connection_options
from remote.ssh.target import Target
target = Target("user@host", stay_s=600)
os.name = "nt"
assert not {"ControlPath", "ControlMaster"} & connection_options(target, {}).keys()
"""


def test_the_laptop_s_modules_import_without_unix_and_keep_no_login() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
