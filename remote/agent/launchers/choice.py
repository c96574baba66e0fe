"""Which launcher a run has."""

from typing import Any, Dict

from remote.agent.launchers import local, slurm
from remote.agent.launchers.seam import Launcher


def launcher_of(asked: Dict[str, Any]) -> Launcher:
    """auto, tmux and setsid are one: what lives on this machine."""
    return slurm if asked.get("launcher") == "slurm" else local
