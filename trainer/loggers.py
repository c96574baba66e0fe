"""TensorBoard's curves on a disk that may be full, or away for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """Lightning's; no training ends for it. What a disk does not take is left out, and the curves
    go on in a new file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        try:
            super().log_metrics(metrics, step)
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
                raise
            self._experiment = None  # whose thread has ended with the error

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with contextlib.suppress(OSError):
            super().finalize(status)
