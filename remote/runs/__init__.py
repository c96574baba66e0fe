"""From a command to a run, and all that one does with it."""
