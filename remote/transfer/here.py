"""Whether a run that was fetched is still here."""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath

from remote.agent.shared.names import is_late
from remote.agent.shared.trees import SYMLINK
from remote.errors import TransferFailed
from remote.link.session import Session
from remote.transfer.fetch import ask_manifest, directory_of, listed_files
from remote.transfer.manifest import RemoteFile

FINE_S, COARSE_S = 0.01, 2.0
"""A fetch sets times as exactly as the first; FAT, which has no parts of a second, as the other."""


def seen_here(session: Session, run: str, dest: Path) -> str | None:
    """The server's hash over what a run has made, where all of that lies in `dest`; else None, and
    where only some of it differs that is told.

    A fetch has verified it, and gave each file the server's time: names, sizes and times tell
    whether it is what was fetched.
    """
    answer = ask_manifest(session, run, ())
    files, left = listed_files(answer)
    try:
        directory = directory_of(session, dest, answer.run)
    except TransferFailed:  # a link, which a fetch does not write into either
        return None
    lost = [row for row in left if row.lost]
    apart = [file for file in files if not is_here(directory, file)]
    if apart and len(apart) < len(files):
        session.display.note(
            f"{answer.run.run}: {len(apart)} of {len(files)} files are not here as they are on the"
            " server"
        )
    return None if apart or lost else answer.seen


def is_here(directory: Path, file: RemoteFile) -> bool:
    try:
        status = (directory / PurePosixPath(file.path)).lstat()
    except OSError:
        return False
    if file.mode == SYMLINK or is_late(file.path):
        return True
    apart_s = abs(status.st_mtime - file.changed) if file.changed is not None else 0.0
    is_same = apart_s <= (FINE_S if status.st_mtime % 1 else COARSE_S)
    return stat.S_ISREG(status.st_mode) and status.st_size == file.size and is_same
