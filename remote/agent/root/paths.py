"""Owns every path on the server, and how it is read and written there: a file that may be missing,
whole files, and directories that appear by renaming."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from typing import Iterator, List, Optional, Union

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\Z")
HASH = re.compile(r"[0-9a-f]{8,64}\Z")
ASIDE = ".staging-"
"""Begins the name of a directory that is being made, or removed."""


class Layout:
    """The project's root on the server. `root` is absolute; nothing is created by constructing."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.project = os.path.join(root, "project.json")
        self.agents = os.path.join(root, "agent")
        self.releases = os.path.join(root, "releases")
        self.incoming = os.path.join(root, "releases", ".incoming")
        self.current = os.path.join(root, "current")
        self.environments = os.path.join(root, "env")
        self.data = os.path.join(root, "data")
        self.runs = os.path.join(root, "runs")
        self.lock = os.path.join(root, ".deploy.lock")
        self.shutdown = os.path.join(root, "shutdown.json")
        self.sets = os.path.join(root, "data", ".sets")
        self.data_incoming = os.path.join(root, "data", ".incoming")
        self.data_lock = os.path.join(root, "data", ".lock")

    def agent(self, digest: str) -> str:
        return os.path.join(self.agents, _checked(HASH, digest) + ".pyz")

    def release(self, tree: str) -> str:
        return os.path.join(self.releases, _checked(HASH, tree))

    def manifest(self, tree: str) -> str:
        return os.path.join(self.releases, _checked(HASH, tree) + ".json")

    def set(self, tree: str) -> str:
        return os.path.join(self.sets, _checked(HASH, tree))

    def set_manifest(self, tree: str) -> str:
        return os.path.join(self.sets, _checked(HASH, tree) + ".json")

    def environment(self, key: str) -> str:
        return os.path.join(self.environments, _checked(HASH, key))

    def run(self, run: str) -> str:
        return os.path.join(self.runs, _checked(RUN_ID, run))


def _checked(pattern: "re.Pattern[str]", name: str) -> str:
    if not isinstance(name, str) or not pattern.match(name) or ".." in name:
        raise ValueError(f"not a name of ours: {name!r:.80}")
    return name


def layout_of(run_directory: str) -> Layout:
    """The root that a run lies in."""
    return Layout(os.path.dirname(os.path.dirname(run_directory)))


def place_in(directory: Union[str, bytes], path: str) -> bytes:
    """Of a path as manifests have it, whatever this login's language says of file names."""
    return os.path.join(os.fsencode(directory), path.encode("utf-8", "surrogateescape"))


def resolve_root(text: str) -> str:
    """`~` and relative paths start at the home directory."""
    home = os.path.expanduser("~")
    return os.path.normpath(os.path.join(home, os.path.expanduser(text)))


def random_name(count: int) -> str:
    """Of so many random bytes."""
    return os.urandom(count).hex()


def write_whole(path: str, data: bytes, mode: int = 0o600) -> None:
    """The file appears whole or not at all, also after a power cut."""
    temporary = f"{path}.{random_name(4)}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_link(path: str, target: str) -> None:
    """Lets `path` lead to another place; it is there all the while."""
    aside = os.path.join(os.path.dirname(path), f".{random_name(6)}.tmp")
    os.symlink(target, aside)
    os.replace(aside, path)


@contextlib.contextmanager
def new_directory(path: str, aside: str = ASIDE) -> Iterator[str]:
    """One beside it, named `aside` and something, which becomes `path` once the block has filled
    it; nothing of it stays where that fails."""
    made = os.path.join(os.path.dirname(path), aside + random_name(6))
    os.mkdir(made, 0o700)
    try:
        yield made
        os.rename(made, path)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def remove_file(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_leftovers(directory: str) -> None:
    """What `new_directory` made and a kill has left. Under the lock of those who make them."""
    for name in list_names(directory):
        if name.startswith(ASIDE):
            shutil.rmtree(os.path.join(directory, name), ignore_errors=True)


def remove_directory(path: str, aside: str = ASIDE) -> None:
    """Out of sight first: nobody sees half of it."""
    moved = os.path.join(os.path.dirname(path), aside + random_name(6))
    os.rename(path, moved)
    shutil.rmtree(moved, ignore_errors=True)


def write_json(path: str, value: object, indent: Optional[int] = 1) -> None:
    """None is written and read several times as fast: for what is long."""
    text = json.dumps(value, ensure_ascii=True, indent=indent, sort_keys=True)
    write_whole(path, text.encode() + b"\n")


def read_json(path: str) -> "dict[str, object] | None":
    """None where the file is missing, unreadable or no JSON object: unknown, not empty."""
    try:
        with open(path, "rb") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_bytes(path: str) -> bytes:
    """Empty where the file is missing or unreadable."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def read_text(path: str) -> str:
    return read_bytes(path).decode("utf-8", "replace")


def read_end(path: str, most: int, start: int = 0) -> str:
    """The last `most` bytes, from `start` on at the earliest; empty where there is nothing."""
    try:
        with open(path, "rb") as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - most))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def list_names(directory: str) -> List[str]:
    """Empty where the directory is missing or unreadable."""
    try:
        return os.listdir(directory)
    except OSError:
        return []


def hash_file(path: Union[str, bytes]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for data in iter(lambda: file.read(1 << 20), b""):
            digest.update(data)
    return digest.hexdigest()
