"""A fetched run as a repository to hand in."""
