"""Whose root it is, its making, and the lock of a deploy."""

import contextlib
import os
import time
from typing import Iterator, NamedTuple, Optional

from remote.agent.root import program
from remote.agent.root.calls import Call, Refusal
from remote.agent.root.disk import disk_of
from remote.agent.root.locks import Lock
from remote.agent.root.paths import Layout, read_json, write_json, write_whole


class Problem(NamedTuple):
    message: str
    remedy: str


ELSEWHERE = "set remote.root in fabric.yaml to another place"
YOUR_OWN = "set remote.root to a directory of your own"


def root_problem(call: Call) -> Optional[Problem]:
    """Why the root can't be used for this project, with the remedy; None if it can. Writes
    nothing."""
    root = call.layout.root
    if os.path.lexists(root) and not os.path.isdir(root):
        return Problem(f"{root} is a file, not a directory", ELSEWHERE)
    if problem := _noexec(root):
        return problem
    if os.path.isdir(root):
        if os.stat(root).st_uid != os.getuid():
            return Problem(f"{root} belongs to another user", YOUR_OWN)
        if not os.access(root, os.W_OK | os.X_OK):
            return Problem(f"{root} is not writable", YOUR_OWN)
        return _owner_problem(call)
    parent = os.path.dirname(root)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        return Problem(f"{parent} is a file, so {root} can't be made", ELSEWHERE)
    if not os.access(parent, os.W_OK | os.X_OK):
        return Problem(f"{root} can't be made: {parent} is not writable", YOUR_OWN)
    return None


def _noexec(root: str) -> Optional[Problem]:
    """A disk that starts no programs: an environment could be made on it, and no run."""
    disk = disk_of(root)
    if disk is None or not disk.noexec:
        return None
    message = f"the disk at {disk.mount} is mounted noexec: no program can be started from {root}"
    return Problem(message, "set remote.root to another disk, for example one of your group")


def _owner_problem(call: Call) -> Optional[Problem]:
    layout = call.layout
    if read_json(layout.project) is None:
        if os.path.lexists(layout.project):
            remedy = "set remote.root to another place, or remove that file"
            return Problem(f"{layout.project} can't be read", remedy)
        first = min((x for x in os.listdir(layout.root) if not x.startswith(".")), default="agent")
        if first not in ("agent", "data"):
            return Problem(
                f"{layout.root} holds something that is not a project of ours ({first!r:.60} …)",
                "set remote.root in fabric.yaml to a new directory",
            )
        return None
    return _other_owner(call)


def _other_owner(call: Call) -> Optional[Problem]:
    layout, (project, identity) = call.layout, call.owner
    owner = read_json(layout.project) or {}
    name, kept = owner.get("project"), owner.get("identity")
    remedy = "set remote.root (or remote.project) in fabric.yaml to a value of this project's own"
    if name not in (None, project):
        message = f"{layout.root} belongs to the project {name!r:.80}, not to {project!r:.80}"
        return Problem(message, remedy)
    # A clone without its history has no identity, and earlier ones no folder.
    if not kept or not identity or kept in (identity, identity.partition(":")[0]):
        return None
    return Problem(
        f"{layout.root} belongs to another project named {project!r:.80}: its first commit, or its"
        " folder in the repository, is another one",
        f"{remedy}; where it is this one with a new history, remove {layout.project} there",
    )


def require_owner(call: Call) -> None:
    """For what ends a run, or takes it away. Raises Refusal where it is another project's."""
    problem = _other_owner(call)
    if problem:
        raise Refusal("ServerUnfit", *problem)


def prepare_root(call: Call) -> None:
    """Make the root, private to its user, and keep the agent in it. Raises Refusal where it is not
    ours to use."""
    layout, (project, identity) = call.layout, call.owner
    problem = root_problem(call)
    if problem:
        raise Refusal("ServerUnfit", *problem)
    os.makedirs(layout.root, exist_ok=True)
    os.chmod(layout.root, 0o700)
    folders = (layout.agents, layout.releases, layout.environments, layout.data, layout.runs)
    for directory in folders:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    owner = read_json(layout.project)
    if owner is None or (identity and owner.get("identity") != identity):
        write_json(layout.project, {"project": project, "identity": identity})
    with contextlib.suppress(OSError):  # who starts it asks again; a full disk can be cleaned
        keep_agent(layout)


def keep_agent(layout: Layout) -> str:
    """The agent's own program, kept by its hash; runs and builds are started from it. Returns its
    path."""
    digest = os.environ["REMOTE_AGENT_HASH"]
    path = os.path.join(layout.agents, program.compiled_name(digest))
    if not os.path.exists(path):
        program.compile_later(path)
        path = layout.agent(digest)
    if not os.path.exists(path):
        write_whole(path, program.CONTENT)
    os.environ["REMOTE_AGENT_PYZ"] = path
    return path


def portable_agent(layout: Layout) -> str:
    """For a compute node, whose interpreter may be another version: it refuses what is compiled for
    ours."""
    return layout.agent(os.environ["REMOTE_AGENT_HASH"])


@contextlib.contextmanager
def locked(call: Call, path: str, who: str) -> Iterator[None]:
    """One at a time: waits for another one, telling whom for; it is free once its holder's process
    has ended."""
    told = 0.0
    with contextlib.closing(Lock(path)) as wanted:
        while not wanted.take():
            if time.monotonic() - told > 5:
                call.event(waiting=wanted.holder())
                told = time.monotonic()
            if not call.alive():
                raise BrokenPipeError
            time.sleep(0.2)
        wanted.sign(who)
        yield


@contextlib.contextmanager
def locked_if_free(path: str) -> Iterator[bool]:
    """The same without waiting; False where somebody has it. Where nobody ever had it nothing is
    written."""
    if not os.path.exists(path):
        yield True
        return
    with contextlib.closing(Lock(path)) as wanted:
        yield wanted.take()
