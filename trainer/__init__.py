"""PyTorch Lightning training for CIFAR-10 and folders of images. Imports nothing of `remote`."""

import sys

PROJECT = "remote-train"

if sys.version_info < (3, 10):  # noqa: UP036  one line instead of a syntax that old interpreters choke on
    raise SystemExit("the trainer needs python 3.10 or newer, this is " + sys.version.split()[0])
