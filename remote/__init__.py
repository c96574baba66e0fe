"""The orchestrator: everything that runs on the laptop, and the agent that it starts on the
server."""
