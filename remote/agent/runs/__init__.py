"""Runs: asked for, queued, started, resumed; and a server that shuts itself down after them."""
