"""The training itself: its process, its terminal, and what it finds in its environment."""
