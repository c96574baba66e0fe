"""Importing this module registers every operation."""

from . import environments, facts, files, follow, releases, runs, upkeep  # noqa: F401
