"""Importing this module registers every operation."""

from . import account, environments, facts, files, follow, releases, resume, runs, upkeep, waiting  # noqa: F401
