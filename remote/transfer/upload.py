"""`upload-data`: any file or folder goes to the server once, by its content; `train --data NAME`
uses it there."""

from __future__ import annotations

import errno
import functools
import os
import shlex
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.agent.shared.trees import tree_hash
from remote.agent.shared.weights import SUFFIXES, find_weights
from remote.errors import NotFound, UsageError
from remote.link.answers import DataPut, Pretrained, Reach
from remote.link.facts import Facts
from remote.link.sending import Sending, waiting_note
from remote.link.session import Session, who_am_i
from remote.project.own_trainer import ARCHIVE, load_data_modules
from remote.records import FileEntry
from remote.release.code_files import NOT_REGULAR
from remote.release.release import entry_of, refusing_unreadable, stop_walk
from remote.screen.text import one_line, size

NOISE = ("Thumbs.db", "desktop.ini", "__MACOSX", ".DS_Store", ".git")
TRIES = 5


@dataclass(frozen=True)
class DataSet:
    """A file, or a folder with all that lies in it, and its name on the server."""

    name: str
    folder: Path
    entries: tuple[FileEntry, ...]
    is_file: bool

    @functools.cached_property
    def tree(self) -> str:
        return tree_hash(self.entries)


@dataclass(frozen=True)
class Uploaded:
    """`sent`: bytes; None where all was there under this name already. `before`: the files and
    bytes of another set that the name led to until now."""

    name: str
    files: int
    bytes: int
    sent: int | None
    seconds: float
    tree: str
    before: tuple[int, int] | None = None


def upload_data(session: Session, given: str, name: str | None = None) -> Uploaded:
    """Send what the server lacks of a file or folder; goes on by itself after a broken
    connection."""
    path = Path(given).expanduser()
    if not path.exists():
        raise UsageError(f"{given}: no such file or folder here", step="upload-data")
    path = path.resolve()
    with refusing_unreadable("upload-data", "mend its rights, or take it out of the data"):
        if session.project.has_own_trainer:
            require_images(session, path)
        is_file, entries = path.is_file(), tuple(entries_of(session, path))
    if not entries:
        raise UsageError(f"{given} holds no files", step="upload-data")
    data = DataSet(name or path.name, path.parent if is_file else path, entries, is_file)
    started = time.monotonic()
    done = session.patiently(lambda: send(session, data), "what has arrived stays", TRIES)
    total, seconds = sum(entry.size for entry in entries), time.monotonic() - started
    sent, before = done.received, done.before
    return Uploaded(data.name, len(entries), total, sent, seconds, data.tree, before)


def send(session: Session, data: DataSet) -> DataPut:
    done = session.ask(
        DataPut,
        waiting_note(session, " is sending data"),
        Sending(data.folder, data.entries, "data").upload(session),
        tree=data.tree,
        manifest=data.entries,
        name=data.name,
        single=data.is_file,
        who=who_am_i(),
    )
    session.display.clear()
    return done


def show_uploaded(session: Session, done: Uploaded) -> None:
    sent = (
        "nothing to send, it is there already"
        if done.sent is None
        else f"{size(done.sent)} sent in {done.seconds:.1f} s"
    )
    session.display.line(
        f"{done.name}: {done.files} files, {size(done.bytes)} on {session.host}; {sent};"
        " verified by sha256"
    )
    if done.before is not None:
        files, count = done.before
        session.display.note(
            f"{done.name} was another set until now"
            f" ({files} file{'s' * (files != 1)}, {size(count)})"
        )
    use = "" if done.name == ARCHIVE else f" --data {shlex.quote(done.name)}"
    session.display.line(f"use it: fab -H {session.typed} train{use}")
    if not session.project.has_own_trainer:
        session.display.line(f"a run finds it in $REMOTE_DATA_DIR/{done.name}")


def entries_of(session: Session, path: Path) -> Iterator[FileEntry]:
    """A file, or every file below a folder in order of path. What links lead to is taken as if it
    lay there. Hidden files belong to other people's data (zarr's .zarray), to images never.

    Raises UsageError for links that lead nowhere: they stand for data that is not here."""
    if path.is_file():
        yield entry_at(path.parent, path.name)
        return
    count, seen = 0, set()
    dangling: list[str] = []
    special: list[str] = []

    def is_noise(name: str) -> bool:
        return name in NOISE or (name.startswith(".") and session.project.has_own_trainer)

    for place, folders, names in os.walk(path, followlinks=True, onerror=stop_walk):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_noise(name))
        for name in sorted(name for name in names if not is_noise(name)):
            below = (Path(place) / name).relative_to(path).as_posix()
            kind = kind_of(os.path.join(place, name))
            if kind is None:
                dangling.append(below)
            elif not stat.S_ISREG(kind):
                special.append(below)
            else:
                yield entry_at(path, below)
                count += 1
                session.display.doing(f"reading {path.name}: {count} files")
    session.display.clear()
    if dangling:
        first = f"{path}/{dangling[0]}"
        many = f"{len(dangling)} links lead nowhere, the first is {first}"
        raise UsageError(
            many if dangling[1:] else f"a link leads nowhere: {first}",
            step="upload-data",
            remedy="get what they stand for (git annex get, dvc pull), or remove them",
        )
    for left in special[:8]:
        session.display.note(f"not sent: {left} ({NOT_REGULAR})")
    if len(special) > 8:
        session.display.note(f"not sent: {len(special) - 8} more")


def kind_of(place: str) -> int | None:
    """The mode of what lies there, or of what a link leads to; None for a link that leads nowhere,
    or in a circle."""
    try:
        return os.stat(place).st_mode
    except OSError as error:
        if not os.path.islink(place) or error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return None


def entry_at(folder: Path, path: str) -> FileEntry:
    entry, _ = entry_of(folder, path, 0o644, follow=True)
    if entry is None:
        raise UsageError(
            f"{path} vanished while it was read",
            step="upload-data",
            remedy="run the same command again",
        )
    return entry


def require_images(session: Session, path: Path) -> None:
    """What this project's trainer could not read is said before it is sent. Raises UsageError."""
    archive, listing = load_data_modules(session.project.directory)
    if path.suffix.lower() in SUFFIXES:  # pretrained weights
        return
    cifar10 = (archive.ARCHIVE, archive.BATCHES, "test_batch")
    try:
        if path.suffix.lower() == ".csv":
            remedy = f"name the folder that they lie in: {path.parent}"
            text = f"{path} is a table of images, and holds none"
            raise UsageError(text, step="upload-data", remedy=remedy)
        if path.is_file() and not listing.archive_of(path):
            archive.check_archive(path)
        elif not any((path / name).exists() for name in cifar10) and not listing.holds_images(path):
            text = f"{path} {listing.NEITHER}"
            raise UsageError(text, step="upload-data", remedy="name a folder that does")
    except archive.DataError as error:
        raise UsageError(str(error), step="upload-data") from None


def provide_cifar10(session: Session, facts: Facts) -> str:
    """Where the run finds CIFAR-10 on the server, or may download it to; where it can do neither,
    this laptop's copy is offered.

    Raises NotFound where nobody can be asked, or there is nothing to offer.
    """
    if facts.datasets.cifar10 is not None:
        return facts.datasets.cifar10
    archive, _ = load_data_modules(session.project.directory)
    answer = session.ask(Reach, url=archive.ARCHIVE_URL)
    if answer.reached:
        return f"{facts.root.path}/data/cifar10"
    copy = Copy("CIFAR-10", find_archive(session, archive), ARCHIVE, f"get {archive.ARCHIVE_URL}")
    return offer_copy(session, facts, copy, answer)


def provide_weights(session: Session, facts: Facts, network: str) -> str | None:
    """Where the run finds a library's weights on the server; None: by the library's own way. Where
    that can't work this laptop's copy is offered, as by provide_cifar10."""
    label = network.replace(":", "-")
    for name in facts.datasets.names:
        if os.path.splitext(name)[0] == label:
            return f"{facts.root.path}/data/{name}"
    answer = session.ask(Pretrained, network=network)
    if answer.reached:
        return None
    found = find_weights(network)
    here = Path(found) if found else None
    name = label + (here.suffix if here else ".pth")
    make = f"let {network.partition(':')[0]} download them"
    return offer_copy(session, facts, Copy(f"the weights of {network}", here, name, make), answer)


@dataclass(frozen=True)
class Copy:
    """What a run lacks: this laptop's copy, its name on the server, and how to get one."""

    what: str
    here: Path | None
    name: str
    get: str


def offer_copy(session: Session, facts: Facts, copy: Copy, answer: Reach) -> str:
    why = one_line(answer.problem or "no reason given", 200)
    problem = f"{copy.what} is not on the server, and the server can't download it ({why})"
    if copy.what.startswith("the "):
        problem = f"{copy.what} are not on the server, and the server can't download them ({why})"
    here, step = copy.here, "train"
    command = f"fab -H {session.typed} upload-data {shlex.quote(str(here or copy.name))}"
    if here is None or here.name != copy.name:
        command += f" --name {shlex.quote(copy.name)}"
    if here is None:
        remedy = f"{copy.get} here, then: {command}"
        raise NotFound(problem, host=session.host, step=step, remedy=remedy)
    session.display.note(problem)
    asked = f"send {here} ({size(here.stat().st_size)}) to it, once for all runs?"
    if not session.display.confirm(asked):
        raise NotFound(problem, host=session.host, step=step, remedy=command)
    show_uploaded(session, upload_data(session, str(here), copy.name))
    return f"{facts.root.path}/data/{copy.name}"


def find_archive(session: Session, archive: Any) -> Path | None:
    """This laptop's copy, where people keep it; only one that is whole."""
    project, home = session.project.directory, Path.home()
    data = project / "data"
    for folder in (data, data / "cifar10", project, home / "Downloads", home / "data"):
        try:
            archive.check_archive(folder / ARCHIVE)
        except (OSError, archive.DataError):
            continue
        return folder / ARCHIVE
    return None
