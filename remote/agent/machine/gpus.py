"""What nvidia-smi says, as records: the machine's GPUs, and their use over time."""

import csv
import os
import re
import shutil
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from remote.agent.machine.account import name_of
from remote.agent.machine.processes import boot_id, child_start_time
from remote.agent.machine.programs import NOT_STARTED, Said, begin, finish
from remote.agent.root.paths import read_text
from remote.agent.shared.gpu_choice import Gpu, GpuProcess, GpuReport, driver_major
from remote.agent.shared.text import one_line

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
ANSWER_S = 10.0
MAX_ROWS = 1000

NO_DEVICE = 6
EXIT_REASONS = {
    NO_DEVICE: (
        "nvidia-smi finds no GPU",
        "is one assigned to this machine or container (docker run --gpus all)?",
    ),
    9: (
        "the NVIDIA driver is not loaded",
        "ask the server's administrator to load or reinstall it (modprobe nvidia)",
    ),
    15: ("a GPU has fallen off the bus", "only a reboot of the server brings it back"),
    18: (
        "the NVIDIA driver and its library have different versions",
        "ask the server's administrator to reboot it; an update replaced one of them",
    ),
}
SAID = (
    ("version mismatch", 18),
    ("couldn't communicate with the nvidia driver", 9),
    ("gpu is lost", 15),
    ("no devices were found", NO_DEVICE),
)
NO_TOOL = GpuReport(found=False, problem="no nvidia-smi on the server: no NVIDIA GPU, or no driver")
Rows = List[Dict[str, str]]


def find_nvidia_smi() -> Optional[str]:
    found = shutil.which("nvidia-smi")
    if found:
        return found
    paths = [os.path.join(place, "nvidia-smi") for place in PLACES]
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def look_at_gpus() -> GpuReport:
    """This machine's. Ends within `ANSWER_S` and a second."""
    return _look()._replace(host=os.uname().nodename, boot_id=boot_id())


def _look() -> GpuReport:
    path = find_nvidia_smi()
    if path is None:
        return NO_TOOL
    end = time.monotonic() + ANSWER_S
    # Both at once: without persistence mode each start of nvidia-smi initialises every GPU.
    asked, asked_apps = _ask(path, GPU_FIELDS), _ask(path, APP_FIELDS, "compute-apps")
    fields: Sequence[str] = GPU_FIELDS
    gpus = asked(end)
    if gpus.code not in EXIT_REASONS and "not a valid field" in gpus.out + gpus.err:
        fields, gpus = OLD_GPU_FIELDS, _ask(path, OLD_GPU_FIELDS)(end)
    return read_report(fields, gpus, asked_apps(end))


def sample_usage(named: Optional[Sequence[str]]) -> Optional[List[List[Any]]]:
    """index, uuid, utilization in %, used and total MiB, watts of the GPUs with these indices or
    UUIDs (None: of all); unknown cells are None.

    None where nvidia-smi is missing or shows no GPU; an empty list where it only failed this time.
    """
    path = find_nvidia_smi()
    if path is None:
        return None
    answer = _ask(path, USAGE_FIELDS)(time.monotonic() + ANSWER_S)
    if answer.code in (NO_DEVICE, 9):
        return None
    wanted = None if named is None else set(map(str, named))
    return [
        [_whole(row["index"]), row["uuid"], *(_whole(row[name]) for name in USAGE_FIELDS[2:])]
        for row in (_rows(USAGE_FIELDS, answer.out) if answer.code == 0 else [])
        if wanted is None or wanted & {row["index"], row["uuid"]}
    ]


def _ask(path: str, fields: Sequence[str], about: str = "gpu") -> Callable[[float], Said]:
    """Starts nvidia-smi; what is returned waits for its answer until that time."""
    argv = [path, f"--query-{about}={','.join(fields)}", FORMAT]
    try:
        child = begin(argv, dict(os.environ, LC_ALL="C"))
    except OSError as error:
        said = Said(NOT_STARTED, "", str(error))
        return lambda end: said
    return lambda end: finish(child, max(0.05, end - time.monotonic()))


# -- reading it


def read_report(fields: Sequence[str], gpus: Said, apps: Said) -> GpuReport:
    """`fields`: those that `gpus` answers. A cell that is no number or name is None."""
    if gpus.late:
        return GpuReport(
            found=True,
            fails=True,
            problem=f"nvidia-smi does not answer within {ANSWER_S:.0f} s",
            remedy="a GPU or its driver hangs; often only a reboot of the server helps",
        )
    if gpus.code:
        return _failed(gpus)
    rows = _rows(fields, gpus.out)
    processes = _processes(_rows(APP_FIELDS, apps.out) if apps.code == 0 else [])
    parsed = [_gpu(row, processes) for row in rows]
    # Pinning goes by uuid: what has none, or the same twice, is garbage and not a GPU.
    found = {gpu.uuid: gpu for gpu in parsed if gpu is not None}
    drivers = [_text(row["driver_version"]) for row in rows]
    driver = next((cell for cell in drivers if driver_major(cell) is not None), None)
    said = one_line(gpus.out or gpus.err or "nothing", 120)
    return GpuReport(
        gpus=tuple(found.values()),
        driver_version=driver,
        found=True,
        problem=None if found else f"nvidia-smi lists no usable GPU; it said: {said}",
    )


def _failed(gpus: Said) -> GpuReport:
    said = f"{gpus.out} {gpus.err}".strip()
    by_words = next((code for words, code in SAID if words in said.lower()), None)
    quoted = one_line(said, 200)
    known = EXIT_REASONS.get(gpus.code) or EXIT_REASONS.get(by_words or 0)
    if known is None:
        problem = f"nvidia-smi failed with exit code {gpus.code}: {quoted or 'it said nothing'}"
        known = problem, "run nvidia-smi there by hand"
    else:
        behind = f", {quoted}" if quoted else ""
        known = f"{known[0]} (nvidia-smi: exit {gpus.code}{behind})", known[1]
    fails = gpus.code != NO_DEVICE
    return GpuReport(found=True, fails=fails, problem=known[0], remedy=known[1])


def _rows(fields: Sequence[str], output: str) -> Rows:
    rows = []
    for line in output.replace("\0", "").splitlines()[:MAX_ROWS]:
        try:
            cells = next(csv.reader([line], skipinitialspace=True), [])
        except csv.Error:
            continue
        if len(cells) == len(fields):
            rows.append({name: cell.strip() for name, cell in zip(fields, cells)})
    return rows


def _processes(rows: Rows) -> Dict[str, List[GpuProcess]]:
    """GPU uuid → what computes on it, with its user and age where they are to be seen here."""
    found: Dict[str, List[GpuProcess]] = {}
    for row in rows:
        pid = _whole(row["pid"])
        user, age_s = (None, None) if pid is None else _describe_pid(pid)
        # `/home/wang/venv/bin/python` is shown as `python`.
        name = (_text(row["process_name"]) or "").rpartition("/")[2]
        process = GpuProcess(
            pid, one_line(name, 40) or None, _whole(row["used_memory"]), user, age_s
        )
        found.setdefault(row["gpu_uuid"], []).append(process)
    return found


def _describe_pid(pid: int) -> Tuple[Optional[str], Optional[float]]:
    """User and age; containers and hidepid hide them."""
    try:
        user = one_line(name_of(os.stat(f"/proc/{pid}").st_uid), 40)
    except OSError:
        return None, None
    ticks, uptime = child_start_time(pid), read_text("/proc/uptime").split()
    if ticks is None or not uptime:
        return None, None
    return user, max(0.0, round(float(uptime[0]) - ticks / os.sysconf("SC_CLK_TCK")))


def _gpu(row: Mapping[str, str], processes: Mapping[str, Sequence[GpuProcess]]) -> Optional[Gpu]:
    uuid, index = _text(row["uuid"]), _whole(row["index"])
    if uuid is None or index is None or not re.fullmatch(r"(GPU|MIG)-[0-9A-Za-z/-]{1,80}", uuid):
        return None
    cap = _number(row.get("compute_cap"))
    mig = (_text(row.get("mig.mode.current")) or "").lower()
    return Gpu(
        index=index,
        uuid=uuid,
        name=_text(row["name"]),
        memory_total_mib=_whole(row["memory.total"]),
        memory_used_mib=_whole(row["memory.used"]),
        utilization_percent=_whole(row["utilization.gpu"]),
        compute_capability=cap if cap is not None and 1 <= cap < 100 else None,
        mig={"enabled": True, "disabled": False}.get(mig),
        power_w=_number(row["power.draw"]),
        processes=tuple(processes.get(uuid, ())),
    )


def _text(cell: Optional[str]) -> Optional[str]:
    """None for an empty cell and for `[N/A]`, `[Not Supported]`, `[Unknown Error]`, `ERR!` and
    their like."""
    plain = one_line(cell or "", 200)
    if not plain or plain.startswith("[") or plain in ("ERR!", "N/A", "Unknown Error"):
        return None
    return plain


def _number(cell: Optional[str]) -> Optional[float]:
    plain = _text(cell) or ""
    return float(plain) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", plain) else None


def _whole(cell: Optional[str]) -> Optional[int]:
    """A whole number, or the whole part of one."""
    number = _number(cell)
    return None if number is None else int(number)
