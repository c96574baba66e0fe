"""PyTorch Lightning training for CIFAR-10 and folders of images. Imports nothing of `remote`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.predict import Model

PROJECT = "remote-train"

if sys.version_info < (3, 10):  # noqa: UP036  one line instead of a syntax that old interpreters choke on
    raise SystemExit("the trainer needs python 3.10 or newer, this is " + sys.version.split()[0])


def load(checkpoint: Any, accelerator: str = "auto") -> Model:
    """A trained network to use in code of one's own: `load("weights.pt").predict("photo.jpg")`."""
    # Only here: whoever reads the configuration alone needs no torch.
    from trainer import predict

    return predict.load(checkpoint, accelerator)
