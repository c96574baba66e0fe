"""What lies here: the settings, the command, and what was fetched."""
