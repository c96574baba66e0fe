"""What a run's files say on the server, run.json and state.json. Null counts as left out, and so
does what another version of this program has written in another form."""

from typing import Any, Literal, Mapping, NamedTuple, Optional, Tuple

from remote.agent.shared.states import Cause, Finish, Outcome, State


class SlurmJob(NamedTuple):
    """What is asked of Slurm, as the lines of a job's script: options of sbatch, and the shell's.
    `after`: the job that must have ended before."""

    options: Tuple[str, ...] = ()
    preamble: Tuple[str, ...] = ()
    limit_s: Optional[float] = None
    after: str = ""


class Nodes(NamedTuple):
    """The hosts of one training, in order of rank, as they were typed; empty: Slurm's nodes.
    `rank`: this host's; `key`: a secret of this attempt's; the first one listens at `port`, at one
    of its addresses."""

    count: int = 1  # type: ignore[assignment]  # in place of tuple's method
    rank: int = 0
    hosts: Tuple[str, ...] = ()
    key: str = ""
    address: str = ""
    port: int = 0


class Asked(NamedTuple):
    """run.json: what was asked for, by the laptop that started the run or went on with it.

    `fields`: of the recipe, as typed; what our trainer is told. `env`: the names of the variables
    that --env and remote.env gave; their values are nowhere. `local`: the project's own packages,
    each a LocalPackage. `gpus`: uuids, `gpu_names` the indices by which people know them.
    `queue`: it waits for `wanted_gpus`. `limit_s`, `idle_s`, `stop_s`: how long it may go, be idle,
    and take to save; 0: without a limit, or as usual.
    """

    name: Optional[str] = None
    recipe: Optional[str] = None
    # As typed, and where it lies there.
    data: Optional[str] = None
    data_path: Optional[str] = None
    command: str = ""
    arguments: Tuple[str, ...] = ()
    fields: Mapping[str, str] = {}
    env: Tuple[str, ...] = ()
    finish: Optional[Finish] = None
    argv: Tuple[str, ...] = ()
    # Of a restart.
    resume_argv: Tuple[str, ...] = ()
    release: str = ""
    origin: str = ""
    # Of attempts before, which had other code.
    former_releases: Tuple[str, ...] = ()
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
    devices: str = "auto"
    gpus: Optional[Tuple[str, ...]] = None
    gpu_names: Tuple[str, ...] = ()
    queue: bool = False
    wanted_gpus: int = 1
    max_restarts: int = 0
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


class Attempt(NamedTuple):
    """One that has ended."""

    state: State = "unknown"
    reason: Optional[str] = None
    cause: Optional[Cause] = None
    exit_code: Optional[int] = None
    host: Optional[str] = None
    started: Optional[float] = None
    ended: Optional[float] = None


class RunDetail(NamedTuple):
    """state.json: the newest attempt, which `token` names, and those before it, oldest first. Times
    are the server's own clock's, in seconds since 1970; 0 is the number of no process.

    Behind `notified`: what is seen by who looks, and not recorded.
    """

    state: State = "unknown"
    reason: Optional[str] = None
    cause: Optional[Cause] = None
    exit_code: Optional[int] = None
    host: Optional[str] = None
    boot_id: str = ""
    token: str = ""
    # Since it was asked for.
    since: Optional[float] = None
    started: Optional[float] = None
    ended: Optional[float] = None
    attempts: Tuple[Attempt, ...] = ()
    # So many of them followed one that had failed.
    restarts: int = 0
    supervisor_pid: int = 0
    supervisor_started: Optional[int] = None
    pid: int = 0
    pid_started: Optional[int] = None
    launched: Optional[Literal["tmux", "setsid", "slurm"]] = None
    # Why a queued run is not started yet.
    waiting: str = ""
    # The hosts of a training on several, in order of rank.
    nodes: Tuple[str, ...] = ()
    heartbeat: Optional[float] = None
    stopping: Optional[float] = None
    notified: Optional[str] = None
    # When all of it was fetched, and when it last saved a checkpoint.
    fetched: Optional[float] = None
    checkpointed: Optional[float] = None
    # It waits for an answer in its terminal, whose unfinished line is `line`.
    asking: bool = False
    line: str = ""
    # The line that is being run of a command of several.
    step: Optional[str] = None
    # Another host has it, which alone can tell whether it lives.
    elsewhere: bool = False
    unsupervised: bool = False

    @property
    def starts(self) -> Tuple[Optional[float], ...]:
        """Of all attempts, this one's last."""
        return (*(one.started for one in self.attempts), self.started)

    def ended_as(self, outcome: Outcome, when: float) -> "RunDetail":
        return self._replace(**outcome._asdict(), ended=when, waiting="")


FILE_OF = {Asked: "run.json", RunDetail: "state.json"}
