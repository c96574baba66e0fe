"""Everything about the server that a plan may need, in one call."""

import os
import shutil
import socket
import sys
import threading
import time
from typing import Any, Dict, List, NamedTuple, Optional

from remote.agent.data import datasets
from remote.agent.environments import environments
from remote.agent.launchers.slurm_nodes import NOW_S, node_report
from remote.agent.launchers.slurm_queue import find
from remote.agent.machine import gpus
from remote.agent.machine.account import kills_at_logout
from remote.agent.machine.processes import boot_id
from remote.agent.releases import releases
from remote.agent.releases.contents import partly_received
from remote.agent.root.calls import Call, operation
from remote.agent.root.disk import disk_of
from remote.agent.root.paths import Layout
from remote.agent.root.roots import root_problem
from remote.agent.run_files import records
from remote.agent.shared.gpu_choice import GpuReport
from remote.agent.shared.reading import tell
from remote.agent.shared.states import FINAL


class Question(NamedTuple):
    """`tree` and `manifest` are the release that the laptop holds: the answer tells what of it is
    missing here."""

    tree: Optional[str] = None
    manifest: Optional[List[Any]] = None
    gpu: bool = True
    data: Optional[str] = None
    # sbatch's options for a node whose GPUs are told in place of this machine's.
    slurm: Optional[List[str]] = None


@operation("facts", takes=Question)
def facts(call: Call, question: Question) -> Dict[str, Any]:
    layout = call.layout
    asked_gpus = GpuQuestion(layout, question.slurm) if question.gpu else None
    answer: Dict[str, Any] = {
        "system": system_facts(),
        "root": root_facts(call),
        "tmux": shutil.which("tmux"),
        "sbatch": find("sbatch"),
        "environments": tell(environments.list_environments(layout)),
        "releases": releases.list_releases(layout),
        "current": releases.current_release(layout),
        "runs": [brief(run) for run in records.list_runs(layout)],
        "datasets": datasets.describe_datasets(layout),
    }
    if question.tree is not None:
        answer.update(release_facts(layout, question.tree, question.manifest))
    if question.data is not None:
        answer["data_path"] = datasets.find_data(layout, question.data)
    if asked_gpus is not None:
        answer["gpus"] = tell(asked_gpus.answer())
    return answer


NO_NODE = GpuReport(
    found=False,
    problem="no node was asked for its GPUs",
    remedy="set remote.slurm.gres (such as gpu:1), and one is",
)
"""Of a login node, which trains nothing itself."""


class GpuQuestion:
    """Answered while the rest is looked at: this machine's GPUs, or those of a node of Slurm's."""

    def __init__(self, layout: Layout, slurm: Optional[List[str]]) -> None:
        self.layout = layout
        self.slurm = slurm
        self.found = GpuReport(problem="nvidia-smi has not answered")
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()

    def _ask(self) -> None:
        if self.slurm is None:
            self.found = gpus.look_at_gpus()
        elif self.slurm:
            self.found = node_report(self.layout.root, self.slurm)
        else:
            self.found = NO_NODE

    def answer(self) -> GpuReport:
        self.thread.join(15 if self.slurm is None else NOW_S + 60)
        return self.found


def release_facts(layout: Layout, tree: str, manifest: Optional[List[Any]]) -> Dict[str, Any]:
    exists = os.path.isdir(layout.release(tree))
    if exists or manifest is None:
        return {"release_exists": exists}
    missing = releases.missing_contents(layout, tree, manifest)
    partial = partly_received(layout.incoming, missing)
    return {"release_exists": False, "missing": missing, "partial": partial}


@operation("overview")
def overview(call: Call) -> Dict[str, Any]:
    """GPUs and the runs that have not ended: what changes from one second to the next."""
    runs = records.list_runs(call.layout)
    live = [run.tell() for run in runs if run.state not in FINAL]
    return {"gpus": tell(gpus.look_at_gpus()), "runs": live}


def brief(run: records.Found) -> Dict[str, Any]:
    asked = run.asked
    return {"run": run.run, "state": run.state, "gpus": asked.gpus, "queue": asked.queue}


def system_facts() -> Dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "system": os.uname().sysname,
        "machine": os.uname().machine,
        "python": ".".join(map(str, sys.version_info[:3])),
        "python_path": sys.executable,
        "boot_id": boot_id(),
        "time": time.time(),
        "pythonpath": os.environ.get("PYTHONPATH"),
        "cores": (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "kills_at_logout": kills_at_logout(),
    }


def root_facts(call: Call) -> Dict[str, Any]:
    disk, problem = disk_of(call.layout.root), root_problem(call)
    return {
        "path": call.layout.root,
        "problem": problem and problem._asdict(),
        "free_mib": disk and disk.free_mib,
        "inodes_free": disk and disk.inodes,
        "mount": disk and disk.mount,
    }
