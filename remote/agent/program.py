"""The agent's own bytes, set when it was loaded, so that it can be kept in a root."""

CONTENT = b""
