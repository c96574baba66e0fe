"""The cluster's GPU nodes, seen from a login node that has no GPU: what one of them shows, and who
has them."""

import os
import re
import time
from typing import Any, Dict, List, Optional, Sequence

from remote.agent.launchers.slurm_queue import ask, find
from remote.agent.machine.gpus import FORMAT, GPU_FIELDS, NO_TOOL, read_report
from remote.agent.machine.programs import NOT_STARTED, Said
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import read_json, write_json
from remote.agent.shared.gpu_choice import GpuReport

NOW_S = 10
"""A node that is not free within this time is not waited for."""
KEPT_S, BUSY_S = 30 * 86400.0, 600.0
"""For how long what a node showed is taken to be so, and that none was free."""
NOTHING = Said(0, "", "")
COLUMNS = "NodeList:80|,Partition:40|,StateLong:20|,Gres:200|,GresUsed:200|,Available:10|"
"""With widths: what is longer than 20 would be cut."""
SCRIPT = 'uname -n; cat /proc/sys/kernel/random/boot_id; exec nvidia-smi "$@"'


def on_a_node(options: List[str]) -> Optional[List[str]]:
    """What runs the command behind it on a node that `options` choose, at once or not at all; None
    without srun."""
    srun = find("srun")
    if srun is None:
        return None
    least = ["--quiet", f"--immediate={NOW_S}", "--job-name=fab-look", "--ntasks=1", "--time=10"]
    return [srun, *least, "--input=none", "--chdir=/", *options]


def in_a_job(directory: str, options: Sequence[str]) -> List[str]:
    """What runs the command behind it in a job of its own, which waits as any other."""
    least = ["--quiet", "--job-name=fab-build", "--nodes=1", "--ntasks=1", "--input=none"]
    return [find("srun") or "srun", *least, f"--chdir={directory}", *options]


def raise_if_refused(directory: str, build: Dict[str, Any]) -> None:
    """`build`: what build.json says of one that has ended; without a process it never began."""
    if build.get("pid"):
        return
    with open(os.path.join(directory, "build.log"), errors="replace") as log:
        said = [line.strip().replace("srun: error: ", "") for line in log if line.strip()]
    words = said[-1][:300] if said else "srun has not started it"
    write_json(os.path.join(directory, "build.json"), dict(build, phase="failed", message=words))
    remedy = (
        "see remote.slurm in fabric.yaml, or build on the login node: remote.slurm.build: login"
    )
    raise Refusal("GpuUnfit", f"Slurm refuses the job that builds: {words}", remedy)


def node_report(root: str, options: List[str]) -> GpuReport:
    """The GPUs of a node; without a host where none could be asked. What it said is kept in the
    root."""
    place = os.path.join(root, ".slurm-gpus.json")
    kept: Dict[str, Any] = read_json(place) or {}
    limit_s = KEPT_S if kept.get("host") else BUSY_S
    fresh = 0 <= time.time() - float(kept.get("time") or 0) < limit_s
    if kept.get("options") != options or not fresh:
        kept = {**ask_node(options), "options": options, "time": time.time()}
        if os.path.isdir(root):
            write_json(place, kept)
    if not kept.get("host"):
        return GpuReport(problem=kept.get("problem") or "there is no srun")
    said = Said(kept["code"], kept["out"], kept["err"])
    report = NO_TOOL if said.code == NOT_STARTED else read_report(GPU_FIELDS, said, NOTHING)
    return report._replace(host=kept["host"], boot_id=kept["boot_id"])


def ask_node(options: List[str]) -> Dict[str, Any]:
    prefix = on_a_node(options)
    if prefix is None:
        return {}
    question = ["--query-gpu=" + ",".join(GPU_FIELDS), FORMAT]
    said = ask("srun", [*prefix[1:], "sh", "-c", SCRIPT, "sh", *question], NOW_S + 50.0)
    lines = said.out.splitlines()
    if len(lines) < 2 or not re.fullmatch(r"[0-9a-f-]{36}", lines[1]):
        return {"problem": said.words}
    told = {"code": said.code, "out": "\n".join(lines[2:]), "err": said.err}
    return {"host": lines[0], "boot_id": lines[1], **told}


@operation("slurm_nodes")
def slurm_nodes(call: Call, partition: str = "", waiting: bool = True) -> Dict[str, Any]:
    """The partition's nodes with their GPUs, and who waits for them: a question each to the
    controller, the second one only where `waiting` is wanted."""
    chosen = [f"--partition={partition}"] if partition else []
    told = ask("sinfo", ["-h", "-N", *chosen, "-O", COLUMNS])
    if told.code:
        raise Refusal("ServerUnfit", f"sinfo: {told.words}", "log in to the cluster's login node")
    rows = [[cell.strip() for cell in line.split("|")] for line in told.out.splitlines()]
    default = [] if partition else [row for row in rows if row[1:2] and row[1].endswith("*")]
    asked = ["-h", *chosen, "-t", "PENDING", "-o", "%u"]
    users = ask("squeue", asked).out.split() if waiting else []
    names = ("node", "partition", "state", "gpus", "used", "available")
    return {
        "nodes": [dict(zip(names, row)) for row in default or rows if len(row) > len(names)],
        "waiting": {user: users.count(user) for user in sorted(set(users))},
    }
