"""What lies here: the settings, the code, the command, and what was fetched."""
