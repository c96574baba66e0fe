"""From a command to a run, and what one does with it."""
