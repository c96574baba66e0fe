"""Which files of a project are its code, and why others are not sent."""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from remote.errors import UsageError
from remote.release.git import run_git, zero_separated

PRUNED = {
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    ".tox",
    ".ipynb_checkpoints",
    "node_modules",
    ".idea",
}
"""Directories that hold nothing of a project; left out where there's no git to ask."""
DATA_NAMES = {"runs", "results", "data", "logs", "lightning_logs"}
"""Directories that often hold data or results. Without git they are sent where code lies in them,
else left out."""
CODE = (".py", ".ipynb", ".pyx", ".sh", ".c", ".cc", ".cpp", ".cu", ".h")
NO_CODE = "no code in it: taken for data or results"
IGNORES_ALL = "its .gitignore leaves everything out"
FETCHED_RUNS = "fetched runs"
FETCHED_RUN = re.compile(r"\d{8}-\d{6}-.+-[0-9a-f]{4}")
SECRET_NAMES = (
    ".env",
    ".env.*",
    "*.key",
    "*.ppk",
    "*.p12",
    "*.pfx",
    "*.jks",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "id_ecdsa_sk",
    "id_ed25519_sk",
    ".netrc",
    "_netrc",
    ".pypirc",
    ".git-credentials",
    ".pgpass",
    ".htpasswd",
)
SECRET = re.compile("|".join(map(fnmatch.translate, SECRET_NAMES)))
NO_SECRETS = (".env.example", ".env.sample", ".env.template", ".env.dist")
PRIVATE_KEY = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----|^PuTTY-User-Key-File", re.MULTILINE
)
LONGER_THAN_KEYS = 32 << 10
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
OVER_LIMIT = "over the limit"
LEADS_OUT = "a link that leads out of the project"
NOT_REGULAR, UNREADABLE = "not a regular file", "can't be read"
HELP = {
    LEADS_OUT: "put what it leads to into the project, or send data by upload-data",
    UNREADABLE: "mend its rights, and it is sent",
    NOT_REGULAR: "",
}
"""What to do about what remote.include can't send either."""
LEFT_BY_PIP = "left by pip install"


def folders_made(project: Path, untracked: Iterable[str]) -> dict[str, str]:
    """Folders that a tool has made and makes again, with what they are."""
    found = {}
    for path in untracked:
        if path.endswith("/pyvenv.cfg"):
            found[path[: -len("pyvenv.cfg")]] = "a virtual environment"
        elif path.endswith(".egg-info/PKG-INFO"):
            found[path[: -len("PKG-INFO")]] = LEFT_BY_PIP
        elif (lib := re.match(r"(.*/|)build/(?=lib/|bdist\.)", path)) and any(
            (project / lib[1] / name).is_file() for name in ("pyproject.toml", "setup.py")
        ):
            found[lib[0]] = LEFT_BY_PIP
    return found


def is_fetched(path: str, own: str) -> bool:
    """Whether a file belongs to a run that was fetched into `own`, or to what is remembered
    there."""
    if not path.startswith(own + "/"):
        return False
    first = path[len(own) + 1 :].partition("/")[0]
    return first in (".pending", "sweeps") or bool(FETCHED_RUN.fullmatch(first))


def why_nothing(project: Path) -> tuple[str, str]:
    """Where every file is ignored by a repository that lies around the project: that, and what to
    do."""
    top = os.fsdecode(run_git(project, "rev-parse", "--show-toplevel") or b"").strip()
    is_around = top and Path(top).resolve() != project.resolve()
    if is_around and run_git(project, "check-ignore", "-q", ".") is not None:
        return (
            f": the repository {top} around it ignores them",
            "`git init` here makes it a project of its own",
        )
    return "", "run fab in the project's directory"


def find_included(project: Path, patterns: list[str], own: str) -> list[str]:
    """The files that remote.include names, whether git ignores them or not. Raises UsageError for a
    pattern that matches none."""
    if not patterns:
        return []
    everything = [path for path in _walk(project, DATA_NAMES, []) if not is_fetched(path, own)]
    found = [path for path in everything if is_included(path, patterns)]
    for pattern in patterns:
        if not any(is_included(path, [pattern]) for path in found):
            names = set(everything) | {path.rsplit("/", 1)[-1] for path in everything}
            near = difflib.get_close_matches(pattern, sorted(names), 3, 0.5)
            hint = f"; is it {' or '.join(near)}?" if near else ""
            raise UsageError(
                f"remote.include: {pattern!r:.120} matches no file{hint}",
                step="release",
                remedy="mend fabric.yaml",
            )
    return found


@dataclass
class Listing:
    """Files of a project, relative and with `/`. `modes`: from git's index, where the file system
    has none; `left_out`: folders, with the reason."""

    tracked: set[str] = field(default_factory=set)
    paths: list[str] = field(default_factory=list)
    modes: dict[str, int] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def list_files(project: Path) -> Listing:
    """All to consider. Raises UsageError for submodules that have no content here."""
    if run_git(project, "rev-parse", "--is-inside-work-tree") is None:
        found = Listing()
        found.paths += _walk(project, set(), found.left_out)
        return found
    found = _read_index(project)
    said: list[str] = []
    words = ("ls-files", "-z", "--others", "--exclude-standard")
    others = run_git(project, *words, warnings=said)
    closed = (re.search(r"could not open directory '(.*/)'", line) for line in said)
    found.left_out += [(match[1], UNREADABLE) for match in closed if match]
    for path in [*found.tracked, *zero_separated(others or b"")]:
        if not path.endswith("/") and not _is_folder(f"{project}/{path}"):
            found.paths.append(path)
            continue
        place = project / path
        # A submodule or a repository inside this one: its own git knows its files. Without its
        # .git, git would tell of ours.
        own = (place / ".git").exists()
        inner = list_files(place) if own else Listing()
        inner.paths += () if own else _walk(place, set(), inner.left_out)
        prefix = path.rstrip("/") + "/"
        if path in found.tracked:
            found.tracked |= {prefix + name for name in inner.tracked}
        found.paths += [prefix + name for name in inner.paths]
        found.left_out += [(prefix + name, why) for name, why in inner.left_out]
        found.modes |= {prefix + name: mode for name, mode in inner.modes.items()}
    return found


def _read_index(project: Path) -> Listing:
    found, empty = Listing(), []
    for line in zero_separated(run_git(project, "ls-files", "-z", "--stage") or b""):
        info, _, path = line.partition("\t")
        found.tracked.add(path)
        if os.name == "nt" and info.startswith("100755"):
            found.modes[path] = 0o755
        submodule = project / path if info.startswith("160000") else None
        if submodule and not (submodule / ".git").exists() and not _holds_files(submodule):
            empty.append(path)
    if empty:
        names = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if empty[5:] else "")
        raise UsageError(
            f"the submodule{'s' * (len(empty) > 1)} {names}: no content here",
            step="release",
            remedy="git submodule update --init --recursive",
        )
    return found


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _walk(project: Path, also: set[str], left: list[tuple[str, str]]) -> Iterator[str]:
    """Every file but those of caches and environments; of folders that seem to hold data, only
    where code lies in them or `also` names them. What is left out goes to `left`.
    """

    def prefix_of(directory: str) -> str:
        below = os.path.relpath(directory, project)
        return "" if below == "." else below.replace(os.sep, "/") + "/"

    def pass_over(error: OSError) -> None:
        left.append((prefix_of(error.filename) or "./", UNREADABLE))

    for directory, names, files in os.walk(project, onerror=pass_over):
        prefix = prefix_of(directory)
        for name in list(names):
            place = os.path.join(directory, name)
            if os.path.islink(place):
                names.remove(name)
                files.append(name)
            elif os.path.exists(os.path.join(place, "pyvenv.cfg")):
                names.remove(name)
                left.append((f"{prefix}{name}/", "a virtual environment"))
            elif name in PRUNED:
                names.remove(name)
                if not name.startswith((".git", "__pycache__")):
                    left.append((f"{prefix}{name}/", "a cache or a tool's own"))
            elif not also and ignores_all(place):
                names.remove(name)
                left.append((f"{prefix}{name}/", IGNORES_ALL))
            elif name in DATA_NAMES - also and not _holds_code(place):
                names.remove(name)
                left.append((f"{prefix}{name}/", NO_CODE))
        for name in files:
            if not name.endswith((".pyc", ".pyo")) and name != ".DS_Store":
                yield prefix + name


def ignores_all(folder: str) -> bool:
    """Its own .gitignore says that nothing in it belongs to the project, as that of fetched runs
    does."""
    try:
        return Path(folder, ".gitignore").read_bytes().strip() == b"*"
    except OSError:
        return False


def _holds_code(folder: str) -> bool:
    """Whether code lies in it; what a fetched run's source is made of does not count."""
    for _, names, files in os.walk(folder):
        names[:] = [
            name for name in names if name not in PRUNED and not FETCHED_RUN.fullmatch(name)
        ]
        if any(name.endswith(CODE) for name in files):
            return True
    return False


def reason_to_leave(
    project: Path, path: str, max_file_mib: float, included: list[str]
) -> str | None:
    """Why a file is not sent; None if it is. No remote.include helps what HELP holds."""
    place = f"{project}/{path}"
    try:
        status = os.lstat(place)
    except OSError:
        return None
    if stat.S_ISLNK(status.st_mode):
        inside = _inside(path, os.readlink(place))
        return None if inside else LEADS_OUT
    if not stat.S_ISREG(status.st_mode):
        return NOT_REGULAR
    if is_included(path, included):
        return None
    if is_for_secrets(path.rsplit("/", 1)[-1]):
        return "looks like a secret"
    if status.st_size > max_file_mib * 2**20:
        return f"{OVER_LIMIT} of {max_file_mib:g} MiB: {status.st_size / 2**20:.0f} MiB"
    return None


def how_to_send(left_out: Iterable[tuple[str, str]]) -> list[str]:
    """What to do about them, for each kind of reason once."""
    usual = "to send such a file all the same, name it in remote.include"
    return [text for text in dict.fromkeys(HELP.get(why, usual) for _, why in left_out) if text]


def is_for_secrets(name: str) -> bool:
    lower = name.lower()
    return lower not in NO_SECRETS and bool(SECRET.match(lower))


def is_private_key(path: str, head: bytes) -> bool:
    """A certificate chain may hold a key anywhere; elsewhere a key begins the file, and a mention
    of one is harmless."""
    chain = path.lower().endswith(".pem")
    return bool(PRIVATE_KEY.search(head) if chain else PRIVATE_KEY.match(head.lstrip()))


def is_included(path: str, patterns: list[str]) -> bool:
    """A pattern names a file by its path or its name, or a folder with all below it."""
    name = path.rsplit("/", 1)[-1]
    return any(
        fnmatch.fnmatchcase(path, pattern)
        or fnmatch.fnmatchcase(name, pattern)
        or path.startswith(pattern.rstrip("/") + "/")
        for pattern in patterns
    )


def _inside(path: str, target: str) -> bool:
    target = target.replace(os.sep, "/")
    reached = os.path.normpath("/root/" + os.path.dirname(path) + "/" + target)
    return not os.path.isabs(target) and (reached + "/").replace(os.sep, "/").startswith("/root/")
