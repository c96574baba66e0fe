"""What the files of a run say, and who may see them."""
