"""Owns every path on the server, and the two ways to write there: whole files, and directories that
appear by renaming."""

import json
import os
import re
import secrets

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\Z")
HASH = re.compile(r"[0-9a-f]{8,64}\Z")


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


def resolve_root(text: str) -> str:
    """`~` and relative paths start at the home directory."""
    home = os.path.expanduser("~")
    return os.path.normpath(os.path.join(home, os.path.expanduser(text)))


def write_whole(path: str, data: bytes, mode: int = 0o600) -> None:
    """The file appears whole or not at all, also after a power cut."""
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


def write_json(path: str, value: object) -> None:
    write_whole(
        path, json.dumps(value, ensure_ascii=True, indent=1, sort_keys=True).encode() + b"\n"
    )


def read_json(path: str) -> "dict[str, object] | None":
    """None where the file is missing, unreadable or no JSON object: unknown, not empty."""
    try:
        with open(path, "rb") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
