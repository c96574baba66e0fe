"""Python environments: found, built, proven."""
