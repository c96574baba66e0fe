"""The agent as the laptop starts it: requests in, answers out."""
