"""A server's pythons as records, on either end: an interpreter, an environment that was made, and
the proof that its torch computes there."""

from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from remote.agent.shared.reading import tell


class Torch(NamedTuple):
    """A torch that is installed: its version, and the CUDA or HIP that it was built with."""

    version: Optional[str] = None
    cuda: Optional[str] = None
    hip: Optional[str] = None


class Interpreter(NamedTuple):
    """`problem`: why it can't be used. `packages` and what follows are known after an inspection
    alone."""

    path: str = ""
    problem: Optional[str] = None
    version: Optional[str] = None
    version_info: Tuple[int, ...] = ()
    # Named by remote.python.
    configured: bool = False
    prefix: str = ""
    has_pip: bool = False
    has_venv: bool = False
    has_virtualenv: bool = False
    is_venv: bool = False
    # Folders with packages.
    sites: Tuple[str, ...] = ()
    # Of the conditions in requirements.
    markers: Mapping[str, str] = {}
    # Canonical name → version.
    packages: Mapping[str, str] = {}
    # What the packages that were asked about need, and what these need, and so on.
    requires: Mapping[str, Tuple[str, ...]] = {}
    # Where those came from that were installed from an address, with the branch or tag; and this
    # one, or HEAD, with the commit that it stood for.
    urls: Mapping[str, str] = {}
    commits: Mapping[str, Tuple[str, ...]] = {}
    # Read without importing it.
    torch: Torch = Torch()


class Proof(NamedTuple):
    """torch was tried on the GPUs, at one boot of one host. `ok`: nothing speaks against training
    there; `gpu`: some GPU computed, None: nothing needs torch; `reason`: what to know beside it."""

    ok: bool = False
    gpu: Optional[bool] = None
    reason: Optional[str] = None
    driver: Optional[str] = None
    gpu_uuids: Tuple[str, ...] = ()
    boot_id: Optional[str] = None
    host: Optional[str] = None
    # Seconds since 1970, and how long it took.
    time: Optional[float] = None
    seconds: Optional[float] = None
    torch: Optional[str] = None
    cuda: Optional[str] = None


class Signature(NamedTuple):
    """By which an environment is known to be unchanged, without starting it."""

    # When the interpreter was written, and its size.
    python: Tuple[int, ...] = ()
    # Of each folder with packages.
    sites: Mapping[str, Any] = {}


class Environment(NamedTuple):
    """One that was made there, or is being made."""

    key: str = ""
    kind: str = ""
    requirements_hash: str = ""
    # remote.python and remote.torch.
    wanted: Mapping[str, str] = {}
    names: Tuple[str, ...] = ()
    version: str = ""
    # The interpreter that it was made of, or conda's program.
    base: str = ""
    python: str = ""
    # What `python` leads to, where that is another.
    real_python: Optional[str] = None
    # Of a venv.
    prefix: Optional[str] = None
    needs_torch: bool = False
    imports: Tuple[str, ...] = ()
    packages: Mapping[str, str] = {}
    torch: Torch = Torch()
    # Canonical name → branch or tag, and the commit that it stood for.
    commits: Mapping[str, Tuple[str, ...]] = {}
    installer: str = "none"
    # When, in seconds since 1970, and how long it took.
    built: float = 0.0
    seconds: Optional[float] = None
    signature: Signature = Signature()
    # Below is what a look at it tells.
    ready: bool = False
    # Somebody is at it now.
    building: bool = False
    # False: what it was made from has changed, as `changed` says.
    valid: bool = False
    changed: Optional[str] = None
    proofs: Tuple[Proof, ...] = ()

    def to_json(self) -> Dict[str, Any]:
        """For env.json, which holds what it has."""
        looked = ("ready", "building", "valid", "changed", "proofs")
        told = tell(self).items()
        return {name: one for name, one in told if one is not None and name not in looked}
