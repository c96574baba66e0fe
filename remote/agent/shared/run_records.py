"""What a run's files say on the server, run.json and state.json. Null counts as left out, and so
does what another version of this program has written in another form."""

from typing import Any, Mapping, NamedTuple, Optional, Tuple

from remote.agent.shared.states import Finish


class SlurmJob(NamedTuple):
    """What is asked of Slurm, as the lines of a job's script."""

    # Of sbatch.
    options: Tuple[str, ...] = ()
    # For the shell.
    preamble: Tuple[str, ...] = ()
    # Where a time limit is set.
    limit_s: Optional[float] = None
    # The job that must have ended before.
    after: str = ""


class Nodes(NamedTuple):
    """The hosts of one training, in order of rank, as they were typed; empty: Slurm's nodes."""

    count: int = 1  # type: ignore[assignment]  # in place of tuple's method
    # This host's.
    rank: int = 0
    hosts: Tuple[str, ...] = ()
    # A secret of this attempt's, and where the first host listens, at one of its addresses.
    key: str = ""
    address: str = ""
    port: int = 0


class Asked(NamedTuple):
    """run.json: what was asked for, by the laptop that started the run or went on with it."""

    name: Optional[str] = None
    recipe: Optional[str] = None
    # As typed, and where it lies there.
    data: Optional[str] = None
    data_path: Optional[str] = None
    command: str = ""
    arguments: Tuple[str, ...] = ()
    # Of the recipe, as typed; what our trainer is told.
    fields: Mapping[str, str] = {}
    # The names of the variables that --env and remote.env gave; their values are nowhere.
    env: Tuple[str, ...] = ()
    finish: Optional[Finish] = None
    # The words to start, and those of a restart.
    argv: Tuple[str, ...] = ()
    resume_argv: Tuple[str, ...] = ()
    release: str = ""
    origin: str = ""
    # Of attempts before, which had other code.
    former_releases: Tuple[str, ...] = ()
    # The project's own packages, as runs import them: LocalPackage, told.
    local: Tuple[Any, ...] = ()
    environment_key: str = ""
    # Of what the environment was made for.
    requirements_hash: str = ""
    python: str = ""
    prefix: str = ""
    launcher: str = "auto"
    slurm: SlurmJob = SlurmJob()
    # Where Slurm takes no more jobs at once it is submitted later, and not refused.
    later: bool = False
    nodes: Nodes = Nodes()
    # Of a host that shares the first one's disk: the run's own directory.
    home: str = ""
    # --devices; uuids, and the indices by which people know them.
    devices: str = "auto"
    gpus: Optional[Tuple[str, ...]] = None
    gpu_names: Tuple[str, ...] = ()
    # It waits for so many.
    queue: bool = False
    wanted_gpus: int = 1
    max_restarts: int = 0
    # Seconds: its time limit, how long its GPUs may be idle, and what it has to save; 0: no limit,
    # and what is usual.
    limit_s: float = 0.0
    idle_s: float = 0.0
    stop_s: float = 0.0
    # The sweep that it belongs to, and its values there.
    sweep: Optional[str] = None
    point: Mapping[str, str] = {}
    # For its environment, as the hosts of a training have agreed.
    variables: Mapping[str, str] = {}
    who: str = ""
    created: float = 0.0

    @property
    def is_trainer(self) -> bool:
        """Whether our own trainer runs, which leaves a summary and goes on from checkpoints."""
        return self.finish == "summary"

    @property
    def by_slurm(self) -> bool:
        return self.launcher == "slurm"
