"""What the laptop wants the agent to make of an environment."""

from typing import Literal, Mapping, NamedTuple, Optional, Sequence

BuildKind = Literal["as-is", "overlay", "venv", "conda"]


class TorchChoice(NamedTuple):
    """Which torch an environment gets. `build`: such as cu126; own, default: what pip takes by
    itself; empty: none is wanted. Another build comes from `index_url`, or from `links`, a page of
    wheels. `requirements`: the lines that are installed from there, before anything else."""

    build: str = ""
    reason: str = ""
    index_url: str = ""
    links: str = ""
    requirements: Sequence[str] = ()

    @property
    def source(self) -> str:
        """As an option of pip's; empty where nothing is added to its own indexes."""
        if self.links:
            return f"--find-links {self.links}"
        return f"--extra-index-url {self.index_url}" if self.index_url else ""


NO_TORCH = TorchChoice()


class BuildPlan(NamedTuple):
    """`key`: the environment's, a hash of all that decides it. `python`: the interpreter that it is
    made of, or conda's program. `names`: packages that it must have then; `detail`: those whose
    extras are looked into."""

    key: str = ""
    kind: BuildKind = "as-is"
    python: str = ""
    version: str = ""
    requirements_hash: str = ""
    # remote.python and remote.torch.
    wanted: Mapping[str, str] = {}
    names: Sequence[str] = ()
    detail: Sequence[str] = ()
    needs_torch: bool = False
    # Modules that are imported as a proof.
    imports: Sequence[str] = ()
    torch: TorchChoice = NO_TORCH
    # Requirements; those that need others of them to be built; what limits them; pip's options.
    install: Sequence[str] = ()
    late: Sequence[str] = ()
    constraints: Sequence[str] = ()
    options: Sequence[str] = ()
    # Interpreters whose pip may install for another.
    helpers: Sequence[str] = ()
    # An older python to propose where a package takes none as new as this one.
    older: str = ""
    # Of a venv that an overlay is laid upon.
    parent_sites: Sequence[str] = ()
    # environment.yml, line by line.
    conda: Sequence[str] = ()
    # Room that it needs; 0: unknown.
    need_mib: int = 0
    # Where it is only resolved: the interpreters that it could be made of, the first choice first.
    pythons: Sequence[str] = ()
    # Options of sbatch, where a job of Slurm's builds it.
    job: Optional[Sequence[str]] = None


NO_BUILD = BuildPlan()
"""Of a plan that asks for none."""
