"""Importing this module registers every operation."""

from . import account, datasets, environments, evaluation, facts, files, follow, power, releases, resume, runs, upkeep, waiting  # noqa: F401
