"""Fetches a run's directory: manifest → missing ranges → parts → sha256 → rename."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from remote.agent.shared.trees import SYMLINK
from remote.errors import ProtocolError, RemoteError, TransferFailed, UsageError
from remote.link.answers import FetchDone, FetchManifest, FetchRead
from remote.link.lanes import Lanes
from remote.link.session import Session, who_am_i
from remote.project.results import load, lock_file, pending_in, room_at, went_on_elsewhere
from remote.project.settings import listed
from remote.records import Asked, Run
from remote.screen.text import size
from remote.transfer.manifest import (
    PARTS,
    SOURCE,
    Left,
    RemoteFile,
    checked_manifest,
    holds_name,
    parse_left,
    safe_path,
)
from remote.transfer.receiving import (
    Fetched,
    FetchPlan,
    LocalBytes,
    Receiver,
    plan_fetch,
    read_local,
)
from remote.transfer.wide import WideFetch, is_large

MOST_FILES, RANGES = 10_000_000, 50_000
"""Of one run; of one question."""
ROUNDS = 3
"""A file that changes while it is read is asked for so often."""
SPARE_BYTES = 16 << 20
WAIT_S = 0.5


def fetch_run(session: Session, run: str, dest: Path, ask: bool = True) -> Fetched:
    """Fetch one run completely. After a lost connection the same call goes on where it stopped.

    `ask`: first, where much is to come and somebody sits at the terminal. Raises UsageError where
    the answer is no, and TransferFailed where this disk has no room or a file can't be had
    unchanged.
    """
    answer = ask_manifest(session, run)
    directory = directory_of(session, dest, answer.run)
    with one_at_a_time(session, dest, directory) as waited:
        if waited:
            answer = ask_manifest(session, answer.run.run)
        refuse_earlier(session, directory, answer.run)
        return _bring(session, dest, directory, answer, ask)


def ask_manifest(
    session: Session, run: str, patterns: Sequence[str] | None = None
) -> FetchManifest:
    """Its rows come in several messages: there is no limit to what a run may make. `patterns`: in
    place of remote.results; none: everything."""
    rows: list[Any] = []

    def take(event: dict[str, Any], blob: bytes) -> None:
        more = event.get("files")
        if not isinstance(more, list) or len(rows) > MOST_FILES:
            raise ProtocolError("the list of files has the wrong form", host=session.host)
        rows.extend(more)

    results = listed(session.project.settings.results) if patterns is None else list(patterns)
    answer = session.ask(FetchManifest, take, run=run, results=results)
    return dataclasses.replace(answer, files=tuple(rows))


def listed_files(answer: FetchManifest) -> tuple[list[RemoteFile], list[Left]]:
    """What is to be here, and what stays there. The code comes once, from the first host."""
    files, unheld = checked_manifest(answer.files)
    if answer.run.asked.nodes.rank:
        files = [file for file in files if not file.path.startswith(SOURCE)]
    return files, unheld + parse_left(answer.left)


def _bring(
    session: Session, dest: Path, directory: Path, answer: FetchManifest, ask: bool
) -> Fetched:
    files, left = listed_files(answer)
    fetched = Fetched(directory, answer.run, files=len(files), left=left)
    try:
        remove_stale_links(directory, files)
        link_known_source(dest, directory, files, answer.run.release)
        _fetch_files(session, directory, files, fetched, ask)
        if (directory / PARTS).is_dir() and not any((directory / PARTS).iterdir()):
            (directory / PARTS).rmdir()
    except OSError as error:
        raise _not_writable(session, directory, error) from None
    fetched.known_complete = answer.marked == "complete"
    came = "narrowed" if any(row.lost for row in fetched.left) else "complete"
    if not fetched.known_complete and answer.marked != came:
        narrowed = bool(listed(session.project.settings.results))
        tell_fetched(session, fetched, answer.seen, narrowed)
    return fetched


def _not_writable(session: Session, directory: Path, error: OSError) -> TransferFailed:
    text = f"{directory} can't be written: {error.strerror or error}"
    remedy = "free some space or give another place with --dest, then run the same command again"
    return TransferFailed(text, host=session.host, remedy=remedy)


@contextlib.contextmanager
def one_at_a_time(session: Session, dest: Path, directory: Path) -> Iterator[bool]:
    """Two that fetch one run to one place (a mirror that is kept, TensorBoard's) would write into
    each other's parts. Whether another one had to be waited for."""
    try:
        place = pending_in(dest) / f"{'-'.join(directory.relative_to(dest).parts)}.fetch"
        lock, waited = lock_file(place), False
    except OSError as error:
        raise _not_writable(session, dest, error) from None
    while lock is None:
        if not waited:
            session.display.note(f"another command fetches {directory} just now: waiting for it")
        waited = True
        time.sleep(WAIT_S)
        lock = lock_file(place)
    with lock:
        yield waited


def directory_of(session: Session, dest: Path, run: Run) -> Path:
    """Where a run goes here; of a host that trains along its log and records, beside what the
    first one has."""
    name, rank = run.run, run.asked.nodes.rank
    plain = safe_path(name) and holds_name(name, "win32") and "/" not in name
    if not plain or name.startswith("."):
        raise ProtocolError("the server names no run", host=session.host)
    refuse_links(dest, dest / name)
    if not rank:
        return dest / name
    refuse_links(dest / name, dest / name / f"node-{rank}")
    return dest / name / f"node-{rank}"


def refuse_earlier(session: Session, directory: Path, run: Run) -> None:
    """What another host made of the run, where it went on, is not replaced by what it was before.
    Raises TransferFailed."""
    if not run.asked.nodes.rank and went_on_elsewhere(directory, run):
        text = f"{directory} holds an attempt of it from another host: it stays as it is"
        remedy = "fetch it to another place: --dest"
        raise TransferFailed(text, host=session.host, remedy=remedy)


def tell_fetched(session: Session, fetched: Fetched, seen: str | None, narrowed: bool) -> None:
    """Let the server know that all of an ended run is here, so that `clean` may remove it there.

    `narrowed`: something stays there by remote.results, as the user set it: `clean` keeps such a
    run.
    """
    lost = [row for row in fetched.left if row.lost]
    if not fetched.run.has_ended or fetched.gone or (lost and not narrowed):
        return
    try:
        session.ask(
            FetchDone,
            run=fetched.run.run,
            who=who_am_i(),
            ended=fetched.run.detail.ended,
            files=fetched.files,
            seen=str(seen),
            narrowed=bool(lost),
        )
    except RemoteError as error:
        session.display.note(
            f"all is here, but the server could not be told so ({error.message}); `clean` will keep"
            " the run there"
        )


def remove_stale_links(directory: Path, files: Iterable[RemoteFile]) -> None:
    """A link that was fetched before may be a folder by now. One that leads elsewhere is the
    user's, and stops the fetch."""
    folders = {parent for file in files for parent in PurePosixPath(file.path).parents}
    for folder in sorted(folders, key=lambda path: len(path.parts))[1:]:
        place = directory / folder
        if place.is_symlink() and place.resolve().is_relative_to(directory.resolve()):
            place.unlink()


def link_known_source(
    dest: Path, directory: Path, files: Iterable[RemoteFile], release: str | None
) -> None:
    """The same code that another run here has is not sent again: one file under two names. Each is
    verified like all others."""
    source = [file for file in files if file.path.startswith(SOURCE) and file.mode != SYMLINK]
    if release is None or (source and (directory / source[-1].path).exists()):
        return
    others = [one for one in dest.glob("2*") if one != directory and (one / SOURCE).is_dir()]
    same = (one for one in others if load(Asked, one).release == release)
    other = next(same, None)
    if other is None:
        return
    for file in source:
        known, place = other / file.path, directory / file.path
        if known.is_file() and not known.is_symlink() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(known, place)
            except OSError:  # a file system without such links
                shutil.copy2(known, place)


def _fetch_files(
    session: Session, directory: Path, files: list[RemoteFile], fetched: Fetched, ask: bool
) -> None:
    pending = files
    for count in range(ROUNDS):
        plan = plan_fetch(pending, lambda file: read_local(directory, file))
        _require_space(session, directory, plan)
        if ask and not count:
            _agree(session, plan)
        show = partial(session.display.transfer, "fetching")
        receiver = Receiver(directory, plan, fetched, show)
        try:
            # Of one that changes all the while several channels bring parts of many states.
            _receive(session, fetched.run.run, plan, receiver, session.can_widen and not count)
        finally:
            receiver.close()
            session.display.clear()
        receiver.make_links()
        if not receiver.wrong:
            return
        pending = receiver.wrong
    names = ", ".join(file.path for file in pending[:3])
    raise TransferFailed(
        f"{names} changed each time while being read",
        host=session.host,
        remedy="run the same command again",
    )


def _receive(session: Session, run: str, plan: FetchPlan, receiver: Receiver, widely: bool) -> None:
    large = [pair for pair in plan.wanted if is_large(*pair)] if widely else []
    small = [pair for pair in plan.wanted if pair not in large]
    receiver.queue = [*small, *large]
    if not large:
        _read(session, run, small, receiver)
        return
    with Lanes(session) as lanes:
        _read(session, run, small, receiver)
        if lanes.links:
            WideFetch(session, lanes, run).fetch(large, receiver.event)
        else:
            _read(session, run, large, receiver)


def _read(
    session: Session,
    run: str,
    wanted: Sequence[tuple[RemoteFile, LocalBytes | None]],
    receiver: Receiver,
) -> None:
    """All of it over one channel."""
    ranges = [
        [file.path, have.size if have else 0, have.digest.hexdigest() if have else None, file.size]
        for file, have in wanted
    ]
    for first in range(0, len(ranges), RANGES):
        asked = ranges[first : first + RANGES]
        session.ask(FetchRead, receiver.event, run=run, ranges=asked)


def _agree(session: Session, plan: FetchPlan) -> None:
    """Much is asked about where somebody can answer; where nobody can, it comes: nothing is ever
    left out for its size."""
    if plan.bytes_at_most <= session.project.settings.ask_above_mib * 2**20:
        return
    largest = sorted((file for file, _ in plan.wanted), key=lambda file: -file.size)[:3]
    names = ", ".join(f"{file.path} ({size(file.size)})" for file in largest)
    question = f"{size(plan.bytes_at_most)} are to be fetched, among them {names}. Fetch them?"
    if session.display.confirm(question) is False:
        raise UsageError(
            "nothing was fetched",
            step="fetch",
            host=session.host,
            remedy="remote.results narrows what comes; --yes fetches all unasked",
        )


def _require_space(session: Session, directory: Path, plan: FetchPlan) -> None:
    # A file that grew is written anew beside its old self, so it needs all its bytes.
    need = sum(
        file.size - (have.size if have and have.part else 0)
        for file, have in plan.wanted
        if not (have and have.is_whole(file))
    )
    place, free = room_at(directory)
    if need + SPARE_BYTES > free:
        raise TransferFailed(
            f"{need / 2**20:.0f} MiB to fetch, {free / 2**20:.0f} MiB free at {place}",
            host=session.host,
            remedy="free some space here, or give another place with --dest",
        )


def refuse_links(dest: Path, directory: Path) -> None:
    """The run's directory must be a real directory: a link there could lead what we write to
    another place."""
    if directory.is_symlink() or (
        directory.exists() and directory.resolve().parent != dest.resolve()
    ):
        raise TransferFailed(
            f"{directory} is a link", remedy="remove it or give another place with --dest"
        )
