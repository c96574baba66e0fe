"""The process that stands beside one training on the server, and what it needs for that."""
