"""Code, by its hash."""
