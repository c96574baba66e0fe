"""Importing this module registers every operation, and loads all that they need: the program's file
may be gone by the time they run."""

from remote.agent.data import datasets  # noqa: F401
from remote.agent.environments import environments, resolution  # noqa: F401
from remote.agent.launchers import slurm_nodes  # noqa: F401
from remote.agent.machine import account, network  # noqa: F401
from remote.agent.releases import releases  # noqa: F401
from remote.agent.results import clean, evaluation, fetch, follow  # noqa: F401
from remote.agent.run_files import fetched  # noqa: F401
from remote.agent.runs import launch, listing, members, resume, shutdown  # noqa: F401
from remote.agent.serve import facts  # noqa: F401
