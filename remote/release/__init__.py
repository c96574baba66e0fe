"""The project's code as it is sent: which files, with their hashes."""
