"""What a run's command finds around it: the environment's programs first on PATH, its own modules,
its GPUs, what was before."""

import json
import os
import re
from typing import Dict, List, Optional

from remote.agent.releases.releases import release_of
from remote.agent.root.paths import layout_of, read_text
from remote.agent.run_files.attempts import trainer_checkpoints
from remote.agent.run_files.outputs import find_outputs
from remote.agent.run_files.private import read_variables
from remote.agent.shared.run_records import Asked
from remote.agent.training.own_packages import lay_out_packages
from remote.agent.training.terminal import COLUMNS, LINES

CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors")
TRAINER_STATE = "/trainer_state.json"
"""Written last of such a folder."""
LONGEST_HEADER = 100_000_000
"""Bytes, by the format of safetensors."""
HIDDEN = ("TMUX", "REMOTE_AGENT_", "PYTHONHOME")
TASKS = ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE")
"""One process is started here; Lightning takes these for srun's and waits for the others."""


def run_environment(directory: str, asked: Asked, attempt: int) -> Dict[str, str]:
    """This login's variables, what `--env` gave, and those of the run. Makes the folders that they
    name."""
    values = {key: value for key, value in os.environ.items() if not key.startswith(HIDDEN)}
    # Of a training on several hosts; what a person gives counts more.
    values.update(asked.variables)
    values.update(read_variables(directory))
    values.update(own_variables(directory, asked, attempt))
    values.update(python_variables(directory, asked, values))
    if "srun" not in " ".join(asked.argv):
        for name in TASKS:
            values.pop(name, None)
    return values


def own_variables(directory: str, asked: Asked, attempt: int) -> Dict[str, str]:
    # Made before the start: torch stages checkpoints in TMPDIR, and a rename between file systems
    # shows half a file.
    temporary = os.path.join(directory, "tmp")
    os.makedirs(temporary, mode=0o700, exist_ok=True)
    own = {
        "COLUMNS": str(COLUMNS),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "LINES": str(LINES),
        "PYTHONUNBUFFERED": "1",
        "REMOTE_ATTEMPT": str(attempt),
        "REMOTE_DATA_DIR": layout_of(directory).data,
        "REMOTE_RUN_DIR": directory,
        "TERM": os.environ.get("TERM", "xterm") if "TMUX" in os.environ else "xterm",
        "TMPDIR": temporary,
    }
    if asked.data_path:
        own["REMOTE_DATA"] = asked.data_path
    if asked.gpus is not None:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(asked.gpus)
    checkpoint = newest_checkpoint(directory, asked) if attempt > 1 else None
    if checkpoint:
        own["REMOTE_CHECKPOINT"] = checkpoint
    return own


def python_variables(directory: str, asked: Asked, known: Dict[str, str]) -> Dict[str, str]:
    """Its programs stand before those of `known`, and its modules too."""
    own, python = {}, asked.python
    packages = lay_out_packages(directory, asked)
    if python:
        places = [os.path.dirname(python), *base_programs(python), known.get("PATH", os.defpath)]
        own["PATH"] = os.pathsep.join([*packages.programs, *places])
    if packages.modules:
        before = filter(None, [known.get("PYTHONPATH")])
        own["PYTHONPATH"] = os.pathsep.join([*packages.modules, *before])
    if asked.prefix:
        own["VIRTUAL_ENV"] = asked.prefix
    return own


def base_programs(python: str) -> List[str]:
    """Where the programs of the interpreter lie that an environment was laid upon; empty for one
    that stands alone."""
    text = read_text(os.path.join(os.path.dirname(os.path.dirname(python)), "pyvenv.cfg"))
    lines = dict(re.findall(r"^\s*([\w-]+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    inherits = lines.get("include-system-site-packages", "").lower() == "true"
    return [lines["home"]] if inherits and lines.get("home") else []


def newest_checkpoint(directory: str, asked: Asked) -> Optional[str]:
    """Of all that the run wrote, the file that looks like a checkpoint and was written last, as a
    whole; or its folder, where a trainer's state lies beside it (Hugging Face's form).
    """
    found = find_outputs(directory, release_of(layout_of(directory), asked.release)).files
    finished = {os.path.dirname(path) for path, _, _, _ in found if path.endswith(TRAINER_STATE)}
    dated = [
        (status.st_mtime_ns, path) for path, _, _, status in found if path.endswith(CHECKPOINTS)
    ]
    for _, path in sorted(dated, reverse=True):
        folder = os.path.dirname(path)
        if folder in finished:
            return os.path.join(directory, folder)
        begun = finished and re.fullmatch(r"checkpoint-\d+", os.path.basename(folder))
        if not begun and not is_cut_off(os.path.join(directory, path)):
            return os.path.join(directory, path)
    return None


def is_cut_off(path: str) -> bool:
    """Whether its writer was killed meanwhile, where its form tells: torch's, which is a zip, and
    safetensors'."""
    import zipfile  # nobody else waits for it

    try:
        with open(path, "rb") as file:
            head, size = file.read(8), os.fstat(file.fileno()).st_size
            if not head or head.startswith(b"PK"):
                return not zipfile.is_zipfile(path)
            length = int.from_bytes(head, "little")
            if not path.endswith(".safetensors") or size < 8 or length > LONGEST_HEADER:
                return False
            rows = json.loads(file.read(length)).values()
            end = max(int(row.get("data_offsets", (0, 0))[1]) for row in rows)
            return size < 8 + length + end
    except (OSError, ValueError, AttributeError, TypeError):
        return True


def checkpoints_of(home: str, asked: Asked) -> List[str]:
    """Below the run's directory: those of our trainer, or what a command of one's own goes on
    from."""
    if asked.is_trainer:
        return sorted(os.path.relpath(path, home) for path in trainer_checkpoints(home))
    newest = newest_checkpoint(home, asked)
    if newest is None or os.path.isfile(newest):
        return [os.path.relpath(newest, home)] if newest else []
    return sorted(
        os.path.relpath(os.path.join(place, name), home)
        for place, _, names in os.walk(newest)
        for name in names
    )
