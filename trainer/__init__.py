"""PyTorch Lightning training for CIFAR-10 and folders of images. Imports nothing of `remote`."""
