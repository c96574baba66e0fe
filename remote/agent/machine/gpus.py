"""What nvidia-smi says, unparsed: gpu_choice.py reads it, on either end."""

import os
import shutil
import subprocess
import time
from typing import Any, Dict, List, Optional, Sequence

from remote.agent.machine.account import name_of
from remote.agent.machine.processes import child_start_time
from remote.agent.machine.programs import begin
from remote.agent.root.paths import read_text

GPU_FIELDS = (
    "index",
    "uuid",
    "name",
    "memory.total",
    "memory.used",
    "utilization.gpu",
    "compute_cap",
    "mig.mode.current",
    "driver_version",
    "power.draw",
)
OLD_GPU_FIELDS = tuple(
    name for name in GPU_FIELDS if name not in ("compute_cap", "mig.mode.current")
)
"""What drivers before 510 know; one unknown field makes nvidia-smi refuse the whole query."""
APP_FIELDS = ("gpu_uuid", "pid", "process_name", "used_memory")
USAGE_FIELDS = ("index", "uuid", "utilization.gpu", "memory.used", "memory.total", "power.draw")
USAGE_COLUMNS = (
    "index",
    "uuid",
    "utilization_percent",
    "memory_used_mib",
    "memory_total_mib",
    "power_w",
)
"""The same in gpu.csv, behind the time."""
PLACES = ("/usr/bin", "/usr/local/nvidia/bin", "/usr/lib/wsl/lib")
FORMAT = "--format=csv,noheader,nounits"
OUTPUT_LIMIT = 200_000
ANSWER_S = 10.0


def find_nvidia_smi() -> Optional[str]:
    found = shutil.which("nvidia-smi")
    if found:
        return found
    paths = [os.path.join(place, "nvidia-smi") for place in PLACES]
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def query_gpus() -> Dict[str, Any]:
    """Raw answers: `{"found": False}`, or `gpus`, `apps` and `pids`.

    `gpus` and `apps`: fields, output, error, exit, seconds, timed_out. `pids`: pid → user and age_s
    of what is visible here. Ends within `ANSWER_S` and a second.
    """
    path = find_nvidia_smi()
    if path is None:
        return {"found": False}
    end = time.monotonic() + ANSWER_S
    # Both at once: without persistence mode each start of nvidia-smi initialises every GPU.
    asked, asked_apps = _Question(path, GPU_FIELDS), _Question(path, APP_FIELDS, "compute-apps")
    gpus = asked.answer(end)
    if (
        gpus["exit"] not in (0, 6, 9, 15, 18, None)
        and "not a valid field" in gpus["output"] + gpus["error"]
    ):
        gpus = _Question(path, OLD_GPU_FIELDS).answer(end)
    apps = asked_apps.answer(end)
    return {"found": True, "gpus": gpus, "apps": apps, "pids": _describe_pids(apps["output"])}


def sample_usage(named: Optional[Sequence[str]]) -> Optional[List[List[Any]]]:
    """index, uuid, utilization in %, used and total MiB, watts of the GPUs with these indices or
    UUIDs (None: of all); unknown cells are None.

    None where nvidia-smi is missing or shows no GPU; an empty list where it only failed this time.
    """
    path = find_nvidia_smi()
    if path is None:
        return None
    answer = _Question(path, USAGE_FIELDS).answer(time.monotonic() + ANSWER_S)
    if answer["exit"] in (6, 9):
        return None
    if answer["exit"] != 0:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer["output"].splitlines()]
    wanted = None if named is None else set(map(str, named))
    return [
        [_whole(row[0]), row[1], *map(_whole, row[2:])]
        for row in rows
        if len(row) == len(USAGE_FIELDS) and (wanted is None or wanted & {row[0], row[1]})
    ]


class _Question:
    """One nvidia-smi, started at once and answered later."""

    def __init__(self, path: str, fields: Sequence[str], about: str = "gpu") -> None:
        self.fields = list(fields)
        self.started = time.monotonic()
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.problem = ""
        argv = [path, f"--query-{about}={','.join(fields)}", FORMAT]
        try:
            self.process = begin(argv, dict(os.environ, LC_ALL="C"))
        except OSError as error:
            self.problem = str(error)

    def answer(self, end: float) -> Dict[str, Any]:
        output, errors, timed_out = b"", self.problem.encode("utf-8", "replace"), False
        if self.process is not None:
            try:
                output, errors = self.process.communicate(timeout=max(0.05, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                timed_out = True
                self.process.kill()
                try:
                    # A process stuck in the driver can't be killed: it is left behind rather than
                    # waited for.
                    output, errors = self.process.communicate(timeout=0.5)
                except subprocess.TimeoutExpired:
                    pass
        return {
            "fields": self.fields,
            "output": output[:OUTPUT_LIMIT].decode("utf-8", "replace"),
            "error": errors[:OUTPUT_LIMIT].decode("utf-8", "replace"),
            "exit": self.process.returncode if self.process is not None and not timed_out else None,
            "seconds": round(time.monotonic() - self.started, 3),
            "timed_out": timed_out,
        }


def _describe_pids(output: str) -> Dict[str, Dict[str, Any]]:
    """User and age of each process listed; what is hidden (containers, hidepid) is left out."""
    described: Dict[str, Dict[str, Any]] = {}
    for line in output.splitlines()[:1000]:
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < 2 or not (cells[1].isascii() and cells[1].isdigit()) or len(cells[1]) > 9:
            continue
        facts = _describe_pid(cells[1])
        if facts:
            described[cells[1]] = facts
    return described


def _describe_pid(pid: str) -> Dict[str, Any]:
    try:
        user = name_of(os.stat(f"/proc/{pid}").st_uid)
    except OSError:
        return {}
    ticks, uptime = child_start_time(int(pid)), read_text("/proc/uptime").split()
    if ticks is None or not uptime:
        return {}
    age_s = float(uptime[0]) - ticks / os.sysconf("SC_CLK_TCK")
    return {"user": user, "age_s": max(0, round(age_s))}


def _whole(cell: str) -> Optional[int]:
    """A whole number, or the whole part of one."""
    digits = cell.partition(".")[0]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None
