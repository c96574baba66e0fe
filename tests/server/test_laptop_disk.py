"""No room left on the laptop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remote.loopback import LoopbackServer
from tests.support.faults import Lab, wait_until

pytestmark = pytest.mark.timeout(180)

MIB = 1 << 20


def test_the_laptops_disk_is_full(server: LoopbackServer, tmp_path: Path) -> None:
    import os
    import subprocess

    lab = Lab(server, tmp_path)
    lab.results.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16640k", "tmpfs", lab.results], capture_output=True
        ).returncode
    ):
        pytest.skip("no small file system can be mounted here")
    try:
        assert lab.task("train").code == 0
        wait_until(lambda: lab.rows()[0]["state"] == "finished")
        early = lab.task("fetch_results")  # not enough room, known beforehand
        assert (
            early.code == 12
            and "MiB free at" in early.err
            and "--dest" in early.err
            and len(early.error_lines) == 1
        )
        assert not list(lab.results.glob("*/.fetch/*"))
        subprocess.run(["mount", "-o", "remount,size=20m", lab.results], check=True)
        with filling(lab.results):
            late = lab.task("fetch_results")  # fills while it comes
        assert late.code == 12 and "No space left" in late.err and len(late.error_lines) == 1, late
        assert lab.task("fetch_results").code == 0
        assert not list(lab.results.glob("*/.fetch/*"))
    finally:
        subprocess.run(["umount", "--lazy", lab.results], check=True)


class filling:
    """Somebody else fills the disk between the check and the write."""

    def __init__(self, place: Path) -> None:
        self.file = place / ".filler"

    def __enter__(self) -> None:
        from remote.transfer import fetch

        self.check = fetch._require_space

        def check_then_fill(*given: Any) -> None:
            self.check(*given)
            try:
                with open(self.file, "wb", buffering=0) as file:
                    while file.write(b"x" * 65536):
                        pass
            except OSError:
                pass

        fetch._require_space = check_then_fill  # type: ignore[assignment]  # takes anything

    def __exit__(self, *error: object) -> None:
        from remote.transfer import fetch

        fetch._require_space = self.check
        self.file.unlink()
