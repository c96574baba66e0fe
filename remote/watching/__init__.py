"""A run as seen from here: listed, followed, in TensorBoard, in its own terminal."""
