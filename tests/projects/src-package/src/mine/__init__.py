"""A package below src/, as pyproject.toml installs it."""
