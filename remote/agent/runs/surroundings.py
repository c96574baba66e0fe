"""What a run's command finds around it: the environment's programs first on PATH, its own modules,
its GPUs, what was before."""

import os
import re
from typing import Any, Dict, Iterable, List, Optional

from remote.agent.releases.releases import release_of
from remote.agent.root.calls import Refusal
from remote.agent.root.paths import Layout, write_whole
from remote.agent.runs.outputs import find_outputs
from remote.agent.runs.private import read_variables
from remote.agent.runs.terminal import COLUMNS, LINES

MODULES = ".modules"
"""In the run's directory: what is to be found wherever a script lies, and whatever an interpreter
is called."""
PROGRESS = "run_progress.py"
CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors")
HIDDEN = ("TMUX", "REMOTE_AGENT_", "PYTHONHOME")


def run_environment(directory: str, asked: Dict[str, Any], attempt: int) -> Dict[str, str]:
    """This login's variables, what `--env` gave, and those of the run. Makes the folders that they
    name."""
    values = {key: value for key, value in os.environ.items() if not key.startswith(HIDDEN)}
    # Of a training on several hosts; what a person gives counts more.
    values.update({str(key): str(value) for key, value in asked.get("variables", {}).items()})
    values.update(read_variables(directory))
    # Made before the start: torch stages checkpoints in TMPDIR, and a rename between file systems
    # shows half a file.
    temporary = os.path.join(directory, "tmp")
    os.makedirs(temporary, mode=0o700, exist_ok=True)
    data = os.path.join(os.path.dirname(os.path.dirname(directory)), "data")
    values.update(
        PYTHONUNBUFFERED="1", REMOTE_RUN_DIR=directory, REMOTE_DATA_DIR=data, TMPDIR=temporary
    )
    values.update(
        COLUMNS=str(COLUMNS),
        LINES=str(LINES),
        TERM=os.environ.get("TERM", "xterm") if "TMUX" in os.environ else "xterm",
    )
    python, prefix, uuids = (
        str(asked.get("python") or ""),
        str(asked.get("prefix") or ""),
        asked.get("gpus"),
    )
    if python:
        places = [
            *_python_wrapper(directory, python),
            os.path.dirname(python),
            *base_programs(python),
        ]
        values["PATH"] = os.pathsep.join([*places, values.get("PATH", os.defpath)])
    modules = module_places(directory, asked.get("local") or ())
    if modules:
        values["PYTHONPATH"] = os.pathsep.join(
            [*modules, *filter(None, [values.get("PYTHONPATH")])]
        )
    if prefix:
        values["VIRTUAL_ENV"] = prefix
    values["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if asked.get("data_path"):
        values["REMOTE_DATA"] = str(asked["data_path"])
    if isinstance(uuids, list):
        values["CUDA_VISIBLE_DEVICES"] = ",".join(str(uuid) for uuid in uuids)
    if "srun" not in " ".join(str(word) for word in asked.get("argv") or ()):
        # One process is started here; Lightning takes these for srun's and waits for the others.
        for name in ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE"):
            values.pop(name, None)
    values["REMOTE_ATTEMPT"] = str(attempt)
    checkpoint = newest_checkpoint(directory, asked) if attempt > 1 else None
    if checkpoint:
        values["REMOTE_CHECKPOINT"] = checkpoint
    return values


def base_programs(python: str) -> List[str]:
    """Where the programs of the interpreter lie that an environment was laid upon; empty for one
    that stands alone."""
    try:
        with open(
            os.path.join(os.path.dirname(os.path.dirname(python)), "pyvenv.cfg"), encoding="utf-8"
        ) as file:
            lines = dict(re.findall(r"^\s*([\w-]+)\s*=\s*(.*?)\s*$", file.read(), re.MULTILINE))
    except (OSError, ValueError):
        return []
    return (
        [lines["home"]]
        if lines.get("include-system-site-packages", "").lower() == "true" and lines.get("home")
        else []
    )


def _python_wrapper(directory: str, python: str) -> List[str]:
    """A folder with a `python`, for those whose interpreter has another name; a link would lose the
    environment around it."""
    if os.path.exists(os.path.join(os.path.dirname(python), "python")):
        return []
    folder = os.path.join(directory, MODULES, "bin")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    quoted = "'" + python.replace("'", "'\\''") + "'"
    write_whole(
        os.path.join(folder, "python"),
        f'#!/bin/sh\nexec {quoted} "$@"\n'.encode("utf-8", "surrogateescape"),
        0o700,
    )
    return [folder]


def module_places(directory: str, local: Iterable[Any] = ()) -> List[str]:
    """The run's own copy of a package that the project would install, and the folder with the
    progress file alone.

    `local`: folders of more such packages below the project, as its requirements name them.
    """
    work = os.path.join(directory, "work")
    places: List[str] = []
    for folder in ["", *(str(name) for name in local)]:
        base = os.path.normpath(os.path.join(work, folder))
        if base != work and not base.startswith(work + os.sep):
            raise Refusal("ProtocolError", f"not a folder inside the run: {folder!r:.80}")
        installable = folder or any(
            os.path.isfile(os.path.join(work, name))
            for name in ("pyproject.toml", "setup.py", "setup.cfg")
        )
        source = os.path.join(base, "src")
        found = (
            source
            if os.path.isdir(source) and _holds_modules(source)
            else base
            if installable
            else ""
        )
        if found and found not in places:
            places.append(found)
    told, folder = os.path.join(work, PROGRESS), os.path.join(directory, MODULES)
    if os.path.isfile(told):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        link = os.path.join(folder, PROGRESS)
        if not os.path.lexists(link):
            os.symlink(told, link)
        places.append(folder)
    return places


def _holds_modules(source: str) -> bool:
    """Packages lie in it: `src/` is where they are imported from, and not a package itself."""
    if os.path.exists(os.path.join(source, "__init__.py")):
        return False
    return any(
        os.path.exists(os.path.join(source, name, "__init__.py")) for name in os.listdir(source)
    )


def newest_checkpoint(directory: str, asked: Dict[str, Any]) -> Optional[str]:
    """Of all that the run wrote, the file that looks like a checkpoint and was written last; or its
    folder, where a trainer's state lies beside it (Hugging Face's form).
    """
    layout = Layout(os.path.dirname(os.path.dirname(directory)))
    found = find_outputs(directory, release_of(layout, asked)).files
    names = {path for path, _, _, _ in found}
    dated = [
        (status.st_mtime_ns, path) for path, _, _, status in found if path.endswith(CHECKPOINTS)
    ]
    if not dated:
        return None
    path = max(dated)[1]
    folder = os.path.dirname(path)
    return os.path.join(directory, folder if f"{folder}/trainer_state.json" in names else path)


def checkpoints_of(home: str, asked: Dict[str, Any]) -> List[str]:
    """Below the run's directory: those of our trainer, or what a command of one's own goes on
    from."""
    if asked.get("finish") == "summary":
        folder = os.path.join(home, "checkpoints")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return [f"checkpoints/{name}" for name in sorted(names) if name.endswith(".ckpt")]
    newest = newest_checkpoint(home, asked)
    if newest is None or os.path.isfile(newest):
        return [os.path.relpath(newest, home)] if newest else []
    return sorted(
        os.path.relpath(os.path.join(place, name), home)
        for place, _, names in os.walk(newest)
        for name in names
    )
