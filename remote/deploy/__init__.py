"""Code and environment on a server, its GPUs, and what is well there."""
