"""The agent on a connection: frames, calls, answers checked once."""
