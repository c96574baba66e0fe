"""The process that stands beside one training on the server: limits, disk, how it ended."""
