"""What this trainer adds to Lightning, each usable alone in any Trainer."""

from trainer.callbacks.average_weights import AverageWeights
from trainer.callbacks.best_checkpoint import BestCheckpoint
from trainer.callbacks.compile_first import CompileFirst
from trainer.callbacks.cut_batches import CutBatches
from trainer.callbacks.exact_resume import ExactResume
from trainer.callbacks.find_divergence import Diverged, FindDivergence
from trainer.callbacks.stop_when_asked import Stopped, StopWhenAsked
from trainer.callbacks.tell_progress import TellProgress

__all__ = [
    "AverageWeights",
    "BestCheckpoint",
    "CompileFirst",
    "CutBatches",
    "Diverged",
    "ExactResume",
    "FindDivergence",
    "StopWhenAsked",
    "Stopped",
    "TellProgress",
]
