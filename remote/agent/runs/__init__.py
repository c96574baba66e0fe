"""Runs: started, watched, told, kept."""
