"""How bytes get to a server: a login, and channels on it."""
