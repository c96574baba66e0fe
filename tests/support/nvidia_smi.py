"""A fake nvidia-smi: a shell script without any other command, so that it works on every sparse
PATH.

    write_nvidia_smi(bin / "nvidia-smi", [FakeGpu(), FakeGpu(memory_used="[N/A]")])
    write_nvidia_smi(bin / "nvidia-smi", [], exit_code=18)      # driver and library don't match
    write_nvidia_smi(bin / "nvidia-smi", [], hang=True)

Put it on a server's PATH with `sparse_path(directory, [*USUAL, str(tool)])` or write it into that
directory.
"""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FAILURES = {
    6: "No devices were found",
    9: (
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure"
        " that the latest NVIDIA driver is installed and running."
    ),
    15: (
        "Unable to determine the device handle for GPU0000:01:00.0: GPU is lost. Reboot the system"
        " to recover this GPU"
    ),
    18: "Failed to initialize NVML: Driver/library version mismatch",
}
"""What nvidia-smi says on stdout with each exit code."""

Process = tuple[str, int | str, str, int | str]
"""gpu_uuid, pid, process_name, used_memory in MiB."""


@dataclass(frozen=True)
class FakeGpu:
    """One GPU's cells as nvidia-smi prints them without units; any of them may be odd, such as
    `[N/A]` or `ERR!`."""

    name: str = "NVIDIA H100 80GB HBM3"
    memory_total: str = "81559"
    memory_used: str = "10"
    utilization: str = "0"
    compute_cap: str = "9.0"
    mig: str = "Disabled"
    temperature: str = "35"
    power: str = "70.00"
    uuid: str = field(default_factory=lambda: f"GPU-{uuid.uuid4()}")

    def cells(self, index: int, driver: str) -> dict[str, str]:
        """Query field → cell."""
        return {
            "index": str(index),
            "uuid": self.uuid,
            "name": self.name,
            "memory.total": self.memory_total,
            "memory.used": self.memory_used,
            "memory.free": _difference(self.memory_total, self.memory_used),
            "utilization.gpu": self.utilization,
            "compute_cap": self.compute_cap,
            "mig.mode.current": self.mig,
            "driver_version": driver,
            "temperature.gpu": self.temperature,
            "power.draw": self.power,
            "pci.bus_id": f"00000000:{index + 1:02X}:00.0",
            "timestamp": "2026/01/01 00:00:00.000",
        }


def write_nvidia_smi(
    path: Path,
    gpus: Sequence[FakeGpu],
    *,
    driver: str = "580.65.06",
    processes: Sequence[Process] = (),
    without: Iterable[str] = (),
    exit_code: int = 0,
    message: str | None = None,
    hang: bool = False,
) -> Path:
    """Write the executable script to `path`, in place of what is there, and return the path.

    It answers exactly the fields asked for, in their order. `without` names fields that this driver
    does not know: asking for one fails as the real tool does. A non-zero `exit_code` fails every
    call with `message` or the usual one.
    """
    if hang:
        body = ["exec /bin/sleep 3600"]
    elif exit_code or not gpus:
        code = exit_code or 6
        body = [
            f"printf '%s\\n' {shlex.quote(message or FAILURES.get(code, 'Unknown Error'))}",
            f"exit {code}",
        ]
    else:
        body = _answering(gpus, driver, processes, set(without))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text("\n".join(["#!/bin/sh", *body, ""]))
    draft.chmod(0o755)
    os.replace(draft, path)
    return path


def _answering(
    gpus: Sequence[FakeGpu], driver: str, processes: Sequence[Process], without: set[str]
) -> list[str]:
    rows = [gpu.cells(index, driver) for index, gpu in enumerate(gpus)]
    known = [{name: cell for name, cell in row.items() if name not in without} for row in rows]
    keys = ("gpu_uuid", "pid", "process_name", "used_memory")
    apps = [dict(zip(keys, map(str, process), strict=True)) for process in processes]
    return [
        *_table("gpu", known, list(known[0])),
        *_table("apps", apps, list(keys)),
        _LOOP.format(gpus=len(rows), apps=len(apps), listing=shlex.quote(_listing(gpus))),
    ]


def _table(name: str, rows: Sequence[dict[str, str]], fields: Sequence[str]) -> list[str]:
    """A function that sets `cell` to the named field of row $1; status 1 for a field that does not
    exist."""
    cases = [
        f"{number}:{key}) cell={shlex.quote(row[key])};;"
        for number, row in enumerate(rows)
        for key in row
    ]
    known = "|".join(f"*:{key}" for key in fields)
    return [f"cell_{name}() {{ case $1:$2 in", *cases, f"{known}) cell=;;", "*) return 1;; esac; }"]


_LOOP = """
refuse() {{ printf '%s\\n' "$1"; exit 2; }}
answer() {{ # table, number of rows, fields
    IFS=,
    for name in $3; do
        cell_$1 0 "$name" || refuse "Field \\"$name\\" is not a valid field to query."
    done
    row=0
    while [ "$row" -lt "$2" ]; do
        line=
        for name in $3; do cell_$1 "$row" "$name"; line="$line${{line:+, }}$cell"; done
        printf '%s\\n' "$line"
        row=$((row + 1))
    done
}}
table= fields= format=
for argument in "$@"; do
    case $argument in
    --query-gpu=*) table=gpu rows={gpus} fields=${{argument#*=}};;
    --query-compute-apps=*) table=apps rows={apps} fields=${{argument#*=}};;
    --format=*) format=${{argument#*=}};;
    -L | --list-gpus) table=list;;
    *) refuse "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.";;
    esac
done
case $table in
'' | list) printf '%s\\n' {listing};;
*)
    [ "$format" = csv,noheader,nounits ] ||
        refuse "the fake nvidia-smi knows only csv,noheader,nounits"
    answer "$table" "$rows" "$fields";;
esac"""


def _listing(gpus: Sequence[FakeGpu]) -> str:
    return "\n".join(
        f"GPU {index}: {gpu.name} (UUID: {gpu.uuid})" for index, gpu in enumerate(gpus)
    )


def _difference(total: str, used: str) -> str:
    return str(int(total) - int(used)) if total.isdigit() and used.isdigit() else "[N/A]"
