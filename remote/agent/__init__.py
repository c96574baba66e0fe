"""The agent: one small program on the server. Standard library only, Python >= 3.8; it never
imports the rest of `remote`."""
