"""What is said of a training and left of it: its plan, its summary, its page and its pictures."""
