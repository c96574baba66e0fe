"""Everything about the server that a plan may need, in one call."""

import os
import platform
import shutil
import socket
import sys
import threading
import time
from typing import Any, Dict, List, Optional

from remote.agent.data import datasets
from remote.agent.environments import environments, interpreters
from remote.agent.launchers.slurm_nodes import NOW_S, node_report
from remote.agent.launchers.slurm_queue import find
from remote.agent.machine import gpus
from remote.agent.machine.account import kills_at_logout, user_name
from remote.agent.machine.processes import boot_id
from remote.agent.releases import releases
from remote.agent.releases.contents import partly_received
from remote.agent.root.calls import Call, operation
from remote.agent.root.disk import disk_of
from remote.agent.root.roots import root_problem
from remote.agent.runs import records
from remote.agent.shared.states import FINAL


def host_name() -> str:
    return socket.gethostname()


@operation("facts")
def facts(
    call: Call,
    python: str = "",
    tree: Optional[str] = None,
    manifest: Optional[List[Any]] = None,
    gpu: bool = True,
    data: Optional[str] = None,
    slurm: Optional[List[str]] = None,
) -> Dict[str, Any]:
    """`tree` and `manifest` are the release that the laptop holds: the answer tells what of it is
    missing here."""
    # `slurm`: sbatch's options for a node whose GPUs are told in place of this machine's.
    layout = call.layout
    found: Dict[str, Any] = {"found": None}

    def ask_gpus() -> None:
        if slurm is None:
            found.update(gpus.query_gpus())
        else:
            found.update(node_report(layout.root, slurm) if slurm else {"found": False})

    thread = threading.Thread(target=ask_gpus, daemon=True)
    if gpu:
        thread.start()
    answer: Dict[str, Any] = {
        "system": system_facts(),
        "root": root_facts(call),
        "tmux": shutil.which("tmux"),
        "sbatch": find("sbatch"),
        "environments": environments.list_environments(layout),
        "interpreters": interpreters.list_interpreters(layout, python),
        "releases": releases.list_releases(layout),
        "current": releases.current_release(layout),
        "runs": [brief(run) for run in records.list_runs(layout)],
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
        thread.join(15 if slurm is None else NOW_S + 60)
        answer["gpu"] = dict(found)
    return answer


@operation("overview")
def overview(call: Call) -> Dict[str, Any]:
    """GPUs and the runs that have not ended: what changes from one second to the next."""
    runs = records.list_runs(call.layout)
    live = [run for run in runs if run["state"] not in FINAL]
    return {"gpu": gpus.query_gpus(), "runs": live}


def brief(run: Dict[str, Any]) -> Dict[str, Any]:
    told = {key: run.get(key) for key in ("run", "state", "host", "release", "gpus")}
    return dict(told, queue=run["asked"].get("queue") is True)


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
        "pythonpath": os.environ.get("PYTHONPATH"),
        "cores": (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "kills_at_logout": kills_at_logout(),
    }


def root_facts(call: Call) -> Dict[str, Any]:
    disk = disk_of(call.layout.root)
    return {
        "path": call.layout.root,
        "problem": root_problem(call),
        "free_mib": disk and disk.free_mib,
        "inodes_free": disk and disk.inodes,
        "mount": disk and disk.mount,
    }
