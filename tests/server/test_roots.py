"""A root that can't be used, and a disk that is full: one line, and nothing left
behind."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from tests.server.test_surroundings import refused
from tests.support.faults import Done, Lab, mount_small_disk, wait_until
from tests.support.project import make_tree, snapshot
from tests.support.proxy import Relay
from tests.support.sshd import MakeServer

pytestmark = pytest.mark.timeout(120)


def on_disk(server: LoopbackServer, tmp_path: Path, disk: Path) -> Lab:
    """A project of 3 MiB whose root lies there."""
    files: dict[str, str | bytes] = {"big": os.urandom(3 << 20), "train.sh": "true\n"}
    return Lab(server, tmp_path, files=files, settings={"root": str(disk / "p")})


class TestRoots:
    """The root can't be used: told by the first answer, and nothing was sent but our own
    program."""

    def test_a_disk_that_starts_no_programs(self, server: LoopbackServer, tmp_path: Path) -> None:
        place = server.home / "projects"
        place.mkdir()
        if (
            os.geteuid()
            or subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", place], capture_output=True
            ).returncode
        ):
            pytest.skip("no file system can be mounted here")
        try:
            refused(Lab(server, tmp_path).task("deploy"), 7, "noexec", str(place), "remote.root")
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)

    @pytest.mark.parametrize(
        ("prepare", "words"),
        [
            (lambda root: make_tree(root.parent, {root.name: "x"}), ("is a file", "remote.root")),
            (
                lambda root: make_tree(root, {"thesis.tex": "x"}),
                ("not a project of ours", "thesis.tex", "remote.root"),
            ),
            (
                lambda root: make_tree(root, {"project.json": '{"project": "other"}'}),
                ("belongs to the project 'other'", "remote.project"),
            ),
            (
                lambda root: make_tree(root, {"project.json": "x"}),
                ("can't be read", "remove that file"),
            ),
            (
                lambda root: make_tree(root.parent.parent, {"projects": "x"}),
                ("is a file, so", "remote.root"),
            ),
        ],
        ids=["a file", "somebody's folder", "another project's", "spoilt", "below a file"],
    )
    def test_it_is_not_ours(
        self,
        server: LoopbackServer,
        tmp_path: Path,
        prepare: Callable[[Path], object],
        words: tuple[str, ...],
    ) -> None:
        lab = Lab(server, tmp_path, files={"big": os.urandom(3 << 20)})
        prepare(lab.root)
        before = snapshot(server.home)
        with Relay(server.host, server.port) as relay:
            lab.relay = relay
            refused(lab.task("deploy"), 7, *words)
            assert relay.bytes_up < 200_000
        assert snapshot(server.home) == before

    def test_it_is_not_writable(self, unprivileged: LoopbackServer, tmp_path: Path) -> None:
        python = Path(unprivileged.path, "python3")
        if os.geteuid() == 0:
            python.unlink(missing_ok=True)
            python.symlink_to("/usr/bin/python3")
        for root in ("/usr/ours", "/root/ours"):
            done = Lab(unprivileged, tmp_path, name=root[1:5], settings={"root": root}).task(
                "deploy"
            )
            refused(done, 7, "not writable", "remote.root")

    def test_its_disk_is_full(
        self, server: LoopbackServer, tmp_path: Path, small_disk: Path
    ) -> None:
        lab = on_disk(server, tmp_path, small_disk)
        fill(small_disk)
        with Relay(server.host, server.port) as relay:
            lab.relay = relay
            refused(
                lab.task("deploy"),
                7,
                f"the disk at {small_disk} has",
                "MiB free",
                "needs 7 MiB",
                "remote.root",
            )
            assert relay.bytes_up < 200_000

    def test_its_disk_fills_while_the_code_comes(
        self, server: LoopbackServer, tmp_path: Path, small_disk: Path
    ) -> None:
        lab = on_disk(server, tmp_path, small_disk)
        with Relay(server.host, server.port, bytes_per_s=2_000_000) as relay:
            lab.relay = relay
            ended: list[Done] = []
            thread = threading.Thread(target=lambda: ended.append(lab.task("deploy")))
            thread.start()
            wait_until(lambda: relay.bytes_up > 600_000)
            filler = fill(small_disk)
            thread.join(60)
        refused(ended[0], 7, "no space left", str(small_disk), "free some space")
        assert not (small_disk / "p" / "current").exists()
        filler.unlink()
        assert lab.task("deploy", route=server).code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mount_small_disk(tmp_path / "disk", 12) as place:
        yield place


def fill(place: Path) -> Path:
    filler = place / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    return filler


def test_a_full_disk_can_be_freed_with_a_program_that_is_not_there_yet(
    make_server: MakeServer, tmp_path: Path, small_disk: Path
) -> None:
    """As after an upgrade of ours."""
    (small_disk / "tmp").mkdir()
    home, env = small_disk / "home", {"TMPDIR": str(small_disk / "tmp")}
    server = make_server(home=home, env=env)
    lab = Lab(server, tmp_path, files={"train.sh": "echo up; cat /dev/zero | head -c 99999 > big"})
    assert lab.task("train", follow=True).code == 0
    make_tree(lab.project, {"train.sh": "echo up; sleep 60"})
    assert lab.task("train", name="live").code == 0
    for kept in (lab.root / "agent").iterdir():
        kept.unlink()
    fill(small_disk)
    new = Lab(server, tmp_path, name="new").task("train")
    assert new.code == 7 and "has 0 MiB free" in new.error_lines[0], new
    live, ended = (row["run"] for row in lab.rows())
    for done in (
        lab.task("stop", run=live),
        lab.task("fetch_results", run=ended),
        lab.task("clean", yes=True, run=[ended]),
    ):
        assert done.code == 0, done
    assert (lab.results / ended / "work" / "big").stat().st_size == 99999
    assert not (lab.root / "runs" / ended).exists()
    assert not list((small_disk / "tmp").iterdir())
