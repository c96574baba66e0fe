"""Images, uploaded once."""
