"""What is typed behind `fab train`, `sweep`, `fetch-results` and `submit`, a record for each;
remote/tasks/ explains the options. Loads nothing: `fab --list` is quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remote.screen.display import Display


@dataclass(frozen=True)
class RunOptions:
    """What is asked of a run just as it is typed."""

    recipe: str | None = None
    data: str | None = None
    devices: str = "auto"
    name: str | None = None
    # So many of the free GPUs; None: all that are free, or one after waiting.
    gpus: int | None = None
    # Refuse rather than wait for a GPU.
    now: bool = False
    # It is told to save, and ended, after so long; on Slurm the job's own time limit.
    time: str | None = None
    # The same after so long without its GPUs being used.
    stop_if_idle: str | None = None
    # The supervisor goes on by itself after a crash, so often.
    max_restarts: int = 0
    # One training on so many hosts, or nodes of a cluster.
    nodes: int | None = None


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Of `train`, and of `sweep` for each of its points."""

    set: Sequence[str] = ()
    resume: str | None = None
    notify: str | None = field(default=None, repr=False)
    # Neither: on a terminal.
    follow: bool = False
    no_follow: bool = False
    env: Sequence[str] = ()
    # A resumed run takes today's code and packages in place of its own.
    with_new_code: bool = False
    # Go into its terminal at once.
    interactive: bool = False
    # True: the option alone.
    shutdown_after: str | bool | None = None
    keep_unfetched: str | None = None
    # What stands behind `--`.
    arguments: Sequence[str] | None = None

    def follows(self, display: Display) -> bool:
        """Whether to stay and show the training."""
        if self.interactive:
            return False
        if self.follow or self.no_follow:
            return self.follow
        return display.live and not display.json_mode


@dataclass(frozen=True)
class FetchOptions:
    run: str = "latest"
    dest: str | None = None
    watch: bool = False
    then_shutdown: bool = False
    yes: bool = False


@dataclass(frozen=True)
class SubmitOptions:
    run: str = "latest"
    dest: str = "submission"
    data: str | None = None
    push: str | None = None
    github: str | None = None
    accept: Sequence[str] = ()
    yes: bool = False
