"""Images: where they come from, what happens to them, and the loaders."""
