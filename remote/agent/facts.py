"""Everything about the server that a plan may need, in one call."""

import getpass
import os
import platform
import shutil
import socket
import sys
import threading
import time
from typing import Any, Dict, List, Optional

from . import datasets, environments, gpus, interpreters, releases, runs
from .calls import Call, operation
from .contents import partly_received
from .paths import Layout, mount_of, read_json, resolve_root
from .processes import boot_id
from .roots import root_problem


def host_name() -> str:
    return socket.gethostname()


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@operation("facts")
def facts(
    call: Call,
    root: str,
    project: str,
    identity: Optional[str] = None,
    python: str = "",
    tree: Optional[str] = None,
    manifest: Optional[List[Any]] = None,
    gpu: bool = True,
    data: Optional[str] = None,
) -> Dict[str, Any]:
    """`tree` and `manifest` are the release that the laptop holds: the answer tells what of it is missing here."""
    layout = Layout(resolve_root(root))
    found: Dict[str, Any] = {"found": None}

    def ask_gpus() -> None:
        found.update(gpus.query_gpus())

    thread = threading.Thread(target=ask_gpus, daemon=True)
    if gpu:
        thread.start()
    answer: Dict[str, Any] = {
        "system": system_facts(),
        "root": root_facts(layout, project, identity),
        "tmux": shutil.which("tmux"),
        "environments": environments.list_environments(layout),
        "interpreters": interpreters.list_interpreters(layout, python),
        "releases": releases.list_releases(layout),
        "current": releases.current_release(layout),
        "runs": [brief(run) for run in runs.list_runs(layout)],
        "datasets": datasets.describe_datasets(layout),
    }
    if tree is not None:
        answer["release_exists"] = os.path.isdir(layout.release(tree))
        if manifest is not None and not answer["release_exists"]:
            answer["missing"] = releases.missing_contents(layout, tree, manifest)
            answer["partial"] = partly_received(layout.incoming, answer["missing"])
    if data is not None:
        answer["data_path"] = datasets.find_data(layout, data)
    if gpu:
        thread.join(15)
        answer["gpu"] = dict(found)
    return answer


def brief(run: Dict[str, Any]) -> Dict[str, Any]:
    return {key: run.get(key) for key in ("run", "state", "host", "release", "gpus")}


def system_facts() -> Dict[str, Any]:
    return {
        "host": host_name(),
        "user": user_name(),
        "uid": os.getuid(),
        "system": platform.system(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "glibc": platform.libc_ver()[1] or None,
        "python": platform.python_version(),
        "python_path": sys.executable,
        "boot_id": boot_id(),
        "time": time.time(),
        "home": os.path.expanduser("~"),
        "shell": os.environ.get("SHELL"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "kills_at_logout": kills_at_logout(),
    }


def kills_at_logout() -> bool:
    """True where systemd-logind is told to kill what a user leaves behind, and lingering is off for this user."""
    setting = False
    for path in ("/etc/systemd/logind.conf",):
        try:
            with open(path) as file:
                for line in file:
                    name, _, value = line.partition("=")
                    if name.strip() == "KillUserProcesses":
                        setting = value.strip().lower() in ("yes", "true", "1", "on")
        except OSError:
            continue
    return setting and not os.path.exists(os.path.join("/var/lib/systemd/linger", user_name()))


def root_facts(layout: Layout, project: str, identity: Optional[str]) -> Dict[str, Any]:
    existing = layout.root
    while not os.path.exists(existing) and existing != os.path.dirname(existing):
        existing = os.path.dirname(existing)
    answer: Dict[str, Any] = {
        "path": layout.root,
        "exists": os.path.isdir(layout.root),
        "project": read_json(layout.project),
        "problem": root_problem(layout, project, identity),
    }
    try:
        disk = os.statvfs(existing)
    except OSError:
        return answer
    answer.update(
        free_mib=disk.f_bavail * disk.f_frsize >> 20,
        total_mib=disk.f_blocks * disk.f_frsize >> 20,
        inodes_free=disk.f_favail if disk.f_files else None,
        mount=mount_of(existing),
    )
    return answer
