"""A package at the project's top, run as a module."""
