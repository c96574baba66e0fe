"""Where a server's interpreters lie: by name on the PATH, and in the places that conda, pyenv, uv
and their like use."""

import glob
import os
import re
import shlex
import shutil
from typing import Dict, List, Optional, Sequence, Tuple

from remote.agent.machine.programs import Said, ask
from remote.agent.root.paths import read_text, write_whole

NAMES = ("python3", *(f"python3.{minor}" for minor in range(15, 7, -1)), "python")
CONDA_PLACES = (
    "~/miniconda3",
    "~/anaconda3",
    "~/miniforge3",
    "~/mambaforge",
    "/opt/conda",
    "/opt/miniconda3",
    "/opt/miniforge3",
    "/root/miniconda3",
)
PLACES = (
    "/venv/main",
    "/opt/venv",
    "$VIRTUAL_ENV",
    "$CONDA_PREFIX",
    *(place for base in CONDA_PLACES for place in (base, base + "/envs/*")),
    "~/.conda/envs/*",
    "~/micromamba/envs/*",
    "$MAMBA_ROOT_PREFIX/envs/*",
    "~/.pyenv/versions/*",
    "$PYENV_ROOT/versions/*",
    "~/.local/share/uv/python/*",
    "~/.virtualenvs/*",
    "$WORKON_HOME/*",
)
"""Folders, or patterns of folders, that have bin/python."""
NETWORK = re.compile(r"(PIP|UV)_|(https?|all|no)_proxy$|SSL_CERT_|REQUESTS_CA_BUNDLE$", re.I)
LOGIN_TIMEOUT_S = 10.0
MAX_CANDIDATES = 60


def candidates(configured: str, path: Optional[str]) -> List[str]:
    """`path`: a PATH to look at beside this login's."""
    paths: List[str] = [configured] if configured else []
    for place in ("$VIRTUAL_ENV", "$CONDA_PREFIX"):
        paths += _pythons_at(place)
    for name in NAMES:
        for found in (shutil.which(name), shutil.which(name, path=path) if path else None):
            paths += [os.path.abspath(found)] if found else []
    for place in [*PLACES, *map(glob.escape, _listed_by_conda())]:
        paths += _pythons_at(place)
    unique: Dict[Tuple[str, str], str] = {}
    for python in paths:
        # A configured path is described even if it is missing, so that its problem can be told.
        if python == configured or os.access(python, os.X_OK):
            # `python`, `python3` and `python3.11` of one folder are one.
            names = os.path.realpath(os.path.dirname(python)), os.path.realpath(python)
            unique.setdefault(names, python)
    return list(unique.values())[:MAX_CANDIDATES]


def _pythons_at(place: str) -> List[str]:
    folder = os.path.expandvars(os.path.expanduser(place))
    return [] if "$" in folder else sorted(glob.glob(os.path.join(folder, "bin", "python")))


def _listed_by_conda() -> List[str]:
    """Environments made with --prefix, wherever they lie."""
    lines = read_text(os.path.expanduser("~/.conda/environments.txt")).splitlines()
    return [line.strip() for line in lines if os.path.isabs(line.strip())]


def login_environment() -> Dict[str, str]:
    """What a login shell sets, which a command over ssh has not; empty where it does not say."""
    shell = os.environ.get("SHELL") or "/bin/sh"
    said = ask_plainly([shell, "-lc", "printf '\\036'; env -0"], LOGIN_TIMEOUT_S)
    pairs = (pair.partition("=") for pair in said.out.rpartition("\x1e")[2].split("\0"))
    return {name: value for name, _, value in pairs if name}


def ask_plainly(argv: List[str], timeout_s: float) -> Said:
    """As somebody who stands nowhere in particular."""
    return ask(argv, timeout_s, plain_environment(), "/")


def lead_to(python: str, folder: str, names: Sequence[str]) -> None:
    """Programs in `folder` that start this interpreter: a link from elsewhere would lose the
    packages of its environment."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    script = f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n'.encode("utf-8", "surrogateescape")
    for name in names:
        write_whole(os.path.join(folder, name), script, 0o700)


def network_environment() -> Dict[str, str]:
    """The plain one, and by what way a login shell reaches the packages: where pip works by hand it
    shall work here."""
    login = login_environment().items()
    return {**{name: value for name, value in login if NETWORK.match(name)}, **plain_environment()}


def plain_environment() -> Dict[str, str]:
    """This login's environment, without what is ours or would bend an interpreter's idea of where
    it lives and what it has: pip takes a package on PYTHONPATH for installed."""
    drop = ("REMOTE_AGENT_", "PYTHONPATH", "PYTHONHOME", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__")
    return {key: value for key, value in os.environ.items() if not key.startswith(drop)}


def glibc_version() -> Optional[str]:
    """None where there is another C library."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")[2] or None
    except (ValueError, OSError):
        return None
