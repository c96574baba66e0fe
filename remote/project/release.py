"""The code as a release: which files, their hashes, and what to send of them."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from remote.agent.shared import protocol
from remote.agent.shared.trees import SYMLINK, tree_hash
from remote.errors import UsageError
from remote.records import FileEntry, Release

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
NO_SECRETS = (".env.example", ".env.sample", ".env.template", ".env.dist")
PRIVATE_KEY = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----|^PuTTY-User-Key-File", re.MULTILINE
)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
OVER_LIMIT = "over the limit"
LEFT_BY_PIP = "left by pip install"
SMALL_MANIFEST = 600
"""A manifest of so many files goes with the first call; a longer one only when it is needed."""


def manifest_rows(release: Release) -> list[list[Any]]:
    return [[entry.path, entry.mode, entry.size, entry.sha256] for entry in release.entries]


def build_release(
    project: Path, max_file_mib: float, include: str = "", dest: str = "results"
) -> Release:
    """List and hash the project's files. Raises UsageError for an unreadable one or for an empty
    project."""
    included = [pattern.strip() for pattern in include.split(",") if pattern.strip()]
    entries: list[FileEntry] = []
    own = os.path.normpath(dest).replace(os.sep, "/")
    tracked, listed, modes, left_out = list_files(project)
    listed += find_included(project, included, own)
    made = folders_made(project, [path for path in listed if path not in tracked])
    left_out += sorted(made.items())
    if (f"{own}/", NO_CODE) in left_out or any(
        path not in tracked and is_fetched(path, own) for path in listed
    ):
        left_out = [row for row in left_out if row[0] != f"{own}/"] + [(f"{own}/", "fetched runs")]
    too_large: list[tuple[int, str, str]] = []
    pointers: list[str] = []
    for path in sorted(set(listed), key=lambda name: name.encode("utf-8", "surrogateescape")):
        if path not in tracked and (is_fetched(path, own) or path.startswith(tuple(made))):
            continue
        reason = reason_to_leave(project, path, max_file_mib, included)
        if reason and reason.startswith(OVER_LIMIT):
            too_large.append((-os.lstat(project / path).st_size, path, reason))
            continue
        if reason:
            left_out.append((path, reason))
            continue
        entry, head = entry_of(project, path, modes.get(path))
        if (
            entry
            and entry.size < 32 << 10
            and is_private_key(path, head)
            and not _is_included(path, included)
        ):
            left_out.append((path, "holds a private key"))
        elif entry:
            entries.append(entry)
            pointers += [path] if head.startswith(LFS_POINTER) else []
    if not entries:
        why, remedy = why_nothing(project)
        raise UsageError(f"no files to send in {project}{why}", step="release", remedy=remedy)
    rows = ((entry.path, entry.mode, entry.size, entry.sha256) for entry in entries)
    left_out = [(path, reason) for _, path, reason in sorted(too_large)] + left_out
    origin = describe_origin(project)
    return Release(tree_hash(rows), tuple(entries), tuple(left_out), tuple(pointers), origin)


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
    top = (
        (_git(project, "rev-parse", "--show-toplevel") or b"")
        .decode("utf-8", "surrogateescape")
        .strip()
    )
    if (
        top
        and Path(top).resolve() != project.resolve()
        and _git(project, "check-ignore", "-q", ".") is not None
    ):
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
    found = [path for path in everything if _is_included(path, patterns)]
    for pattern in patterns:
        if not any(_is_included(path, [pattern]) for path in found):
            names = set(everything) | {path.rsplit("/", 1)[-1] for path in everything}
            near = difflib.get_close_matches(pattern, sorted(names), 3, 0.5)
            hint = f"; is it {' or '.join(near)}?" if near else ""
            raise UsageError(
                f"remote.include: {pattern!r:.120} matches no file{hint}",
                step="release",
                remedy="mend fabric.yaml",
            )
    return found


def list_files(project: Path) -> tuple[set[str], list[str], dict[str, int], list[tuple[str, str]]]:
    """Tracked paths, all paths to consider (relative, with `/`), modes from the index where the
    file system has none, and folders left out, with the reason. Raises UsageError for submodules
    that have no content here.
    """
    if _git(project, "rev-parse", "--is-inside-work-tree") is None:
        left: list[tuple[str, str]] = []
        return set(), list(_walk(project, set(), left)), {}, left
    tracked, everything, modes, empty = set(), [], {}, []
    for line in _zero_separated(_git(project, "ls-files", "-z", "--stage") or b""):
        info, _, path = line.partition("\t")
        tracked.add(path)
        if os.name == "nt" and info.startswith("100755"):
            modes[path] = 0o755
        if (
            info.startswith("160000")
            and not (project / path / ".git").exists()
            and not _holds_files(project / path)
        ):
            empty.append(path)
    if empty:
        names, them = (
            ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if empty[5:] else ""),
            "s" * (len(empty) > 1),
        )
        raise UsageError(
            f"the submodule{them} {names}: no content here",
            step="release",
            remedy="git submodule update --init --recursive",
        )
    untracked = _zero_separated(
        _git(project, "ls-files", "-z", "--others", "--exclude-standard") or b""
    )
    for path in [*tracked, *untracked]:
        place = project / path
        if path.endswith("/") or (place.is_dir() and not place.is_symlink()):
            # A submodule or a repository inside this one: its own git knows its files. Without its
            # .git, git would tell of ours.
            own = (place / ".git").exists()
            inner_tracked, inner, inner_modes, _ = (
                list_files(place) if own else (set(), list(_walk(place, set(), [])), {}, [])
            )
            prefix = path.rstrip("/") + "/"
            tracked |= {prefix + name for name in inner_tracked} if path in tracked else set()
            everything += [prefix + name for name in inner]
            modes |= {prefix + name: mode for name, mode in inner_modes.items()}
        else:
            everything.append(path)
    return tracked, everything, modes, []


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _git(project: Path, *arguments: str) -> bytes | None:
    """Output, or None where there is no git or no repository. Raises UsageError for a repository
    that git refuses."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    }
    try:
        done = subprocess.run(
            ["git", "-c", "core.quotepath=off", "-C", str(project), *arguments],
            capture_output=True,
            timeout=120,
            env=environment | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return None
    if done.returncode == 0:
        return done.stdout
    error = done.stderr.decode("utf-8", "replace").strip()
    if "not a git repository" in error or arguments[0] in (
        "log",
        "symbolic-ref",
        "status",
        "check-ignore",
    ):
        return None
    raise UsageError(
        f"git can't list the files: {error.splitlines()[0] if error else done.returncode}",
        step="release",
    )


def _zero_separated(output: bytes) -> list[str]:
    return [os.fsdecode(name) for name in output.split(b"\0") if name]


def _walk(project: Path, also: set[str], left: list[tuple[str, str]]) -> Iterator[str]:
    """Every file but those of caches and environments; of folders that seem to hold data, only
    where code lies in them or `also` names them. What is left out goes to `left`.
    """
    for directory, names, files in os.walk(project):
        below = os.path.relpath(directory, project)
        prefix = "" if below == "." else below.replace(os.sep, "/") + "/"
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
                left += (
                    [(f"{prefix}{name}/", "a cache or a tool's own")]
                    if not name.startswith((".git", "__pycache__"))
                    else []
                )
            elif name in DATA_NAMES - also and not _holds_code(place):
                names.remove(name)
                left.append((f"{prefix}{name}/", NO_CODE))
        for name in files:
            if not name.endswith((".pyc", ".pyo")) and name != ".DS_Store":
                yield prefix + name


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
    """Why a file is not sent; None if it is."""
    if _is_included(path, included):
        return None
    try:
        status = os.lstat(project / path)
    except OSError:
        return None
    if stat.S_ISLNK(status.st_mode):
        return (
            None
            if _inside(path, os.readlink(project / path))
            else "a link that leads out of the project"
        )
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    lower = path.rsplit("/", 1)[-1].lower()
    if lower not in NO_SECRETS and any(
        fnmatch.fnmatchcase(lower, pattern) for pattern in SECRET_NAMES
    ):
        return "looks like a secret"
    if status.st_size > max_file_mib * 2**20:
        return f"{OVER_LIMIT} of {max_file_mib:g} MiB: {status.st_size / 2**20:.0f} MiB"
    return None


def is_private_key(path: str, head: bytes) -> bool:
    """A certificate chain may hold a key anywhere; elsewhere a key begins the file, and a mention
    of one is harmless."""
    return bool(
        PRIVATE_KEY.search(head)
        if path.lower().endswith(".pem")
        else PRIVATE_KEY.match(head.lstrip())
    )


def _is_included(path: str, patterns: list[str]) -> bool:
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


def entry_of(
    project: Path, path: str, mode: int | None, follow: bool = False
) -> tuple[FileEntry | None, bytes]:
    """The entry and the file's first bytes; None for a file that git knows but that is gone.
    `follow`: what a link leads to."""
    head = b""
    place = project / path
    try:
        status = os.stat(place) if follow else os.lstat(place)
        if stat.S_ISLNK(status.st_mode):
            target = os.fsencode(os.readlink(place).replace(os.sep, "/"))
            return FileEntry(path, SYMLINK, len(target), hashlib.sha256(target).hexdigest()), b""
        digest, size = hashlib.sha256(), 0
        with open(place, "rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
                size += len(data)
                head = head or data[:4096]
    except FileNotFoundError:
        return None, b""
    except OSError as error:
        raise UsageError(
            f"{path} can't be read: {error.strerror}",
            step="release",
            remedy="mend its rights or ignore it",
        ) from None
    if mode is None:
        mode = 0o755 if status.st_mode & stat.S_IXUSR and os.name != "nt" else 0o644
    return FileEntry(path, mode, size, digest.hexdigest()), head


def content_of(project: Path, entry: FileEntry, begin: int = 0) -> Iterator[bytes]:
    """Its bytes from `begin` on, in pieces; a file that changed meanwhile is found out by its hash
    on the other end."""
    place = project / entry.path
    if entry.mode == SYMLINK:
        yield os.fsencode(os.readlink(place).replace(os.sep, "/"))[begin:]
        return
    left = entry.size - begin
    with open(place, "rb") as file:
        file.seek(begin)
        while left and (data := file.read(min(protocol.CHUNK, left))):
            left -= len(data)
            yield data


def upload_frames(
    project: Path,
    entries: Iterable[FileEntry],
    missing: frozenset[str],
    partial: Mapping[str, int] | None = None,
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Frames of contents: pieces packed together, compressed where that gains. Each content goes
    once.

    `partial`: of how many the server has so many bytes already; they are not sent again.
    """
    wanted = {entry.sha256: entry for entry in entries if entry.sha256 in missing}
    begun = {
        sha256: have
        for sha256, have in (partial or {}).items()
        if sha256 in wanted and 0 < have <= wanted[sha256].size
    }
    pieces: list[list[Any]] = []
    data = bytearray()
    for sha256, entry in wanted.items():
        left = entry.size - begun.get(sha256, 0)
        if not left:
            pieces.append([sha256, 0, True])
        for piece in content_of(project, entry, begun.get(sha256, 0)):
            left -= len(piece)
            pieces.append([sha256, len(piece), left <= 0])
            data += piece
            if len(data) >= protocol.CHUNK or len(pieces) >= 2000:
                yield _frame(pieces, bytes(data), begun)
                pieces, data = [], bytearray()
    if pieces:
        yield _frame(pieces, bytes(data), begun)


def _frame(
    pieces: list[list[Any]], data: bytes, begun: dict[str, int]
) -> tuple[dict[str, Any], bytes]:
    """Takes out of `begun` what this frame goes on with."""
    blob, packed = protocol.pack(data)
    header: dict[str, Any] = {"pieces": pieces, "packed": packed}
    if goes_on := {sha256: begun.pop(sha256) for sha256, _, _ in pieces if sha256 in begun}:
        header["from"] = goes_on
    return header, blob


def describe_origin(project: Path) -> str:
    """Branch, commit and whether there were changes; empty without git or before the first
    commit."""
    commit = (
        (_git(project, "log", "-1", "--format=%h %s") or b"").decode("utf-8", "replace").strip()
    )
    return commit[:200]


def project_identity(project: Path) -> str | None:
    """The first commit tells clones of one project from another project of the same name; None
    without git or its full history."""
    if (_git(project, "rev-parse", "--is-shallow-repository") or b"").strip() != b"false":
        return None
    roots = _git(project, "log", "--max-parents=0", "--format=%H", "--reverse")
    return roots.decode().split()[0] if roots and roots.strip() else None
