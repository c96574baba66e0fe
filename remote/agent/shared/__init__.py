"""What both ends must agree on; imports on every system."""
