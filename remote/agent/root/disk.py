"""The disk under a path: where it is mounted, and what is free on it. Asked here alone."""

import contextlib
import errno
import os
import re
from typing import Iterator, NamedTuple, Optional

from remote.agent.root.calls import Refusal


class Disk(NamedTuple):
    """`inodes`: how many more files fit; None where the file system has no such count."""

    mount: str
    free: int
    total: int
    inodes: Optional[int]
    noexec: bool

    @property
    def free_mib(self) -> int:
        return self.free >> 20


def disk_of(path: str) -> Optional[Disk]:
    """Of the path, or of its nearest parent that exists; None where nothing can be told."""
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    try:
        told = os.statvfs(path)
    except OSError:
        return None
    return Disk(
        mount_of(path),
        told.f_bavail * told.f_frsize,
        told.f_blocks * told.f_frsize,
        told.f_favail if told.f_files else None,
        bool(told.f_flag & getattr(os, "ST_NOEXEC", 0)),
    )


LOCAL = re.compile(
    r"ext[234]|xfs|btrfs|zfs|f2fs|jfs|reiserfs|bcachefs|tmpfs|ramfs|overlay|aufs|vfat|exfat|ntfs3?"
    r"|fuseblk"
)


def is_shared(path: str) -> bool:
    """Whether other hosts may have the disk too: any kind that is not known to be this host's."""
    mount, kind = mount_of(path), ""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                _, place, found, *_ = line.split(" ")
                if re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), place) == mount:
                    kind = found
    except OSError:
        return False
    return not LOCAL.fullmatch(kind)


def mount_of(path: str) -> str:
    """Where the file system of `path` is mounted: the name of a disk that a person knows."""
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def require_room(path: str, need: int, files: int, what: str, kind: str = "ServerUnfit") -> None:
    """Raises Refusal of `kind` where `need` bytes and so many new files, for `what`, don't fit."""
    disk = disk_of(path)
    if disk is None:
        return
    lack = ""
    if disk.free < need:
        lack = f" {(need >> 20) + 1} MiB on the disk at {disk.mount}, {disk.free_mib} MiB are free"
    elif disk.inodes is not None and 0 < disk.inodes < files:
        lack = (
            f" {files} files on the disk at {disk.mount}, which takes {disk.inodes} more (inodes)"
        )
    if lack:
        raise Refusal(
            kind,
            f"{what}{lack}",
            "free some space (fab … clean), or set remote.root to another disk",
        )


@contextlib.contextmanager
def naming_disk(place: str) -> Iterator[None]:
    """A failed write names no file, and people want to know which disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            error.filename = place
        raise
