"""What the server is: accounts, processes, GPUs."""
