"""Which launcher a run has."""

from remote.agent.launchers import local, slurm
from remote.agent.launchers.seam import Launcher
from remote.agent.shared.run_records import Asked


def launcher_of(asked: Asked) -> Launcher:
    """auto, tmux and setsid are one: what lives on this machine."""
    return slurm if asked.by_slurm else local
