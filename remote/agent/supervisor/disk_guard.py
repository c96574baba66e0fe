"""A run's disk: told while a checkpoint can still be written, with something held back for the
record of how it ended."""

import os
from typing import Optional

from remote.agent.root.disk import disk_of

LEAST_FREE = 4 << 20
"""Bytes that must be free for the training to go on, or one checkpoint more than that."""
LEAST_FILES = 64
SPARE = 64 << 10


class DiskGuard:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.spare = os.path.join(directory, ".spare")

    def keep_spare(self) -> None:
        with open(self.spare, "wb") as file:
            file.write(b"\xa5" * SPARE)

    def free_spare(self) -> None:
        try:
            os.unlink(self.spare)
        except OSError:
            pass

    def problem(self) -> Optional[str]:
        """Why the training must stop now, so that stopping saves its state; None: there is room."""
        need = LEAST_FREE
        try:
            with os.scandir(os.path.join(self.directory, "checkpoints")) as scan:
                need += max([entry.stat().st_size for entry in scan if entry.is_file()], default=0)
        except FileNotFoundError:
            pass
        except OSError:
            return None
        disk = disk_of(self.directory)
        if disk is not None and disk.free < need:
            return f"the disk at {disk.mount} is full: {disk.free_mib} MiB are free"
        # 0 is what a file system says that keeps no count.
        if disk is not None and disk.inodes and disk.inodes < LEAST_FILES:
            return f"the disk at {disk.mount} is full: it takes {disk.inodes} more files (inodes)"
        return None
