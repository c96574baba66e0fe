"""The project's directory on the server: its paths, whose it is, the agent's own program in it."""
