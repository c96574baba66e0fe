"""A large file over several channels of one login: all of it, verified, resumable, and over one
channel where there is no other."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from remote.agent.shared.protocol import PIECE
from remote.link import sending
from remote.loopback import LoopbackServer
from remote.ssh.openssh import log_out
from remote.transfer import wide
from tests.support.faults import LOST, Lab, short_pauses, wait_until
from tests.support.proxy import Relay
from tests.support.sshd import MakeServer

pytestmark = [pytest.mark.timeout(120), pytest.mark.needs("ssh")]
MAKE = (
    "echo up; head -c 50000000 /dev/urandom > big; head -c 1000 /dev/urandom > small; head -c"
    " 40000000 /dev/urandom > more; echo done\n"
)


class KeptLab(Lab):
    """A project whose logins are kept."""

    def target(self, route: object = None) -> object:  # type: ignore[override]
        import dataclasses

        return dataclasses.replace(super().target(route), stay_s=60.0)  # type: ignore[arg-type]


@pytest.fixture
def lab(server: LoopbackServer, tmp_path: Path) -> KeptLab:
    return trained(KeptLab(server, tmp_path, files={"train.sh": MAKE}, settings={"results": ""}))


def trained(lab: KeptLab) -> KeptLab:
    assert lab.task("train").code == 0
    wait_until(lambda: lab.rows()[0]["state"] == "finished")
    return lab


def same(lab: Lab) -> bool:
    (there,) = (lab.root / "runs").glob("2*/work")
    (here,) = lab.results.glob("2*")
    return all(
        digest(there / name) == digest(here / "work" / name) for name in ("big", "small", "more")
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_large_files_come_side_by_side(lab: KeptLab, monkeypatch: pytest.MonkeyPatch) -> None:
    carried: list[int] = []
    honest = wide.Pieces.put

    def watched(self: wide.Pieces, at: int, blob: bytes) -> None:
        carried.append(len(blob))
        honest(self, at, blob)

    monkeypatch.setattr(wide.Pieces, "put", watched)
    done = lab.task("fetch_results")
    assert done.code == 0 and same(lab), done
    assert sum(carried) == 90_000_000
    assert lab.task("fetch_results").code == 0 and sum(carried) == 90_000_000
    log_out(lab.target())  # type: ignore[arg-type]


@pytest.mark.parametrize("sessions", ["1", "3"])
def test_where_a_login_has_no_more_sessions_one_channel_brings_all(
    make_server: MakeServer, tmp_path: Path, sessions: str
) -> None:
    server = make_server(options={"MaxSessions": sessions})
    lab = trained(KeptLab(server, tmp_path, files={"train.sh": MAKE}, settings={"results": ""}))
    logins = server.log.read_text().count("Accepted publickey for")
    assert lab.task("fetch_results").code == 0 and same(lab)
    assert server.log.read_text().count("Accepted publickey for") <= logins + 1
    log_out(lab.target())  # type: ignore[arg-type]


def test_a_cut_leaves_a_beginning_and_the_next_fetch_goes_on_behind_it(
    server: LoopbackServer, tmp_path: Path
) -> None:
    with Relay(server.host, server.port) as relay, short_pauses():
        lab = trained(
            KeptLab(server, tmp_path, relay, files={"train.sh": MAKE}, settings={"results": ""})
        )
        relay.cut_after(60_000_000, "down")
        assert lab.task("fetch_results").code == LOST
        (here,) = lab.results.glob("2*")
        kept = sum(
            path.stat().st_size
            for path in here.rglob("*")
            if path.is_file() and path.stat().st_size > 4_000_000
        )
        assert kept > 25_000_000
        before = relay_bytes(relay)
        assert lab.task("fetch_results").code == 0 and same(lab)
        assert relay_bytes(relay) - before < 95_000_000 - kept + 2_000_000
        log_out(lab.target())  # type: ignore[arg-type]


def relay_bytes(relay: Relay) -> int:
    return relay.bytes_down


def test_a_file_that_shrinks_meanwhile_holds_up_no_other(
    lab: KeptLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    (there,) = (lab.root / "runs").glob("2*/work")
    honest = wide.Pieces.put
    cut: list[int] = []

    def meddling(self: wide.Pieces, at: int, blob: bytes) -> None:
        if not cut:
            cut.append(at)
            os.truncate(there / "big", 45_000_000)
        honest(self, at, blob)

    monkeypatch.setattr(wide, "AHEAD", 1 << 20)
    monkeypatch.setattr(wide.Pieces, "put", meddling)
    lab.task("fetch_results")  # it may say that this file could not be had as it was listed
    monkeypatch.setattr(wide.Pieces, "put", honest)
    assert cut and lab.task("fetch_results").code == 0 and same(lab)
    log_out(lab.target())  # type: ignore[arg-type]


def test_a_file_that_changes_meanwhile_is_not_put_together_of_two_states(
    lab: KeptLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    (there,) = (lab.root / "runs").glob("2*/work")
    honest = wide.Pieces.put
    changed: list[int] = []

    def meddling(self: wide.Pieces, at: int, blob: bytes) -> None:
        honest(self, at, blob)
        if not changed:
            changed.append(at)
            with open(there / "big", "r+b") as file:
                file.seek(-1000, os.SEEK_END)
                file.write(os.urandom(1000))

    monkeypatch.setattr(wide, "AHEAD", 1 << 20)
    monkeypatch.setattr(wide.Pieces, "put", meddling)
    assert lab.task("fetch_results").code == 0 and changed and same(lab)
    log_out(lab.target())  # type: ignore[arg-type]


def test_a_file_that_changes_all_the_while_comes_as_it_was_read(
    lab: KeptLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that a training writes into: a mirror that is kept must not end with it."""
    (there,) = (lab.root / "runs").glob("2*/work")
    whole = (there / "big").read_bytes()
    ends = [whole[-1000:]]
    honest = wide.Pieces.put

    def meddling(self: wide.Pieces, at: int, blob: bytes) -> None:
        honest(self, at, blob)
        with open(there / "big", "r+b") as file:
            file.seek(-1000, os.SEEK_END)
            ends.append(os.urandom(1000))
            file.write(ends[-1])

    monkeypatch.setattr(wide, "AHEAD", 1 << 20)
    monkeypatch.setattr(wide.Pieces, "put", meddling)
    done = lab.task("fetch_results")
    (here,) = lab.results.glob("2*/work")
    come = (here / "big").read_bytes()
    assert done.code == 0 and len(ends) > 1, done
    assert come[:-1000] == whole[:-1000] and come[-1000:] in ends, "one that it has been"
    log_out(lab.target())  # type: ignore[arg-type]


class TestUpload:
    """`upload-data` of large files, over several channels of the login."""

    @pytest.fixture(autouse=True)
    def any_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sending, "NARROW", 0.0)
        monkeypatch.setattr(sending, "FAST", float("inf"))

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        folder = tmp_path / "set"
        folder.mkdir()
        for name, count in (("big", 77_000_000), ("more", 50_000_000), ("small", 1000)):
            (folder / name).write_bytes(os.urandom(count))
        return folder

    def arrived(self, lab: Lab, data: Path) -> bool:
        there = lab.root / "data" / "set"
        return all(digest(there / path.name) == digest(path) for path in data.iterdir())

    @pytest.fixture
    def carried(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        starts: list[int] = []
        honest = sending.Sending._carry

        def watched(self: sending.Sending, *given: Any) -> None:
            starts.append(given[2])
            honest(self, *given)

        monkeypatch.setattr(sending.Sending, "_carry", watched)
        return starts

    def test_large_files_go_side_by_side(
        self, server: LoopbackServer, tmp_path: Path, data: Path, carried: list[int]
    ) -> None:
        lab = KeptLab(server, tmp_path)
        done = lab.task("upload_data", path=str(data))
        assert done.code == 0 and self.arrived(lab, data), done
        assert len(carried) == 8 + 6  # behind what was measured: 16 MiB of the first one
        assert not (lab.root / "data" / ".incoming").exists()
        log_out(lab.target())  # type: ignore[arg-type]

    def test_one_channel_carries_all_where_there_is_no_other(
        self, make_server: MakeServer, tmp_path: Path, data: Path, carried: list[int]
    ) -> None:
        lab = KeptLab(make_server(options={"MaxSessions": "1"}), tmp_path)
        done = lab.task("upload_data", path=str(data))
        assert done.code == 0 and self.arrived(lab, data) and not carried, done
        log_out(lab.target())  # type: ignore[arg-type]

    def test_a_narrow_line_is_not_shared(
        self,
        server: LoopbackServer,
        tmp_path: Path,
        data: Path,
        carried: list[int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(sending, "NARROW", float("inf"))
        lab = KeptLab(server, tmp_path)
        assert lab.task("upload_data", path=str(data)).code == 0 and self.arrived(lab, data)
        assert not carried
        log_out(lab.target())  # type: ignore[arg-type]

    @pytest.mark.parametrize("after", [30_000_000, 60_000_000, 100_000_000])
    def test_what_has_arrived_before_a_cut_is_not_sent_again(
        self, server: LoopbackServer, tmp_path: Path, data: Path, after: int
    ) -> None:
        with Relay(server.host, server.port) as relay, short_pauses():
            lab = KeptLab(server, tmp_path, relay)
            relay.cut_after(after, "up")
            done = lab.task("upload_data", path=str(data))
            assert done.code == 0 and self.arrived(lab, data), done
            # A piece that was under way on each channel, and what the line held.
            assert relay.bytes_up < 127_000_000 + 8 * PIECE + 8_000_000
            log_out(lab.target())  # type: ignore[arg-type]

    def test_a_file_that_changes_meanwhile_is_refused(
        self,
        server: LoopbackServer,
        tmp_path: Path,
        data: Path,
        carried: list[int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        honest = sending.Sending._arrived

        def meddling(self: sending.Sending, *given: Any) -> Any:
            with open(data / "big", "r+b") as file:
                file.seek(-1000, os.SEEK_END)
                file.write(os.urandom(1000))
            return honest(self, *given)

        monkeypatch.setattr(sending.Sending, "_arrived", meddling)
        lab = KeptLab(server, tmp_path)
        done = lab.task("upload_data", path=str(data))
        assert done.code != 0 and "changed while it was being sent" in done.err
        monkeypatch.setattr(sending.Sending, "_arrived", honest)
        assert lab.task("upload_data", path=str(data)).code == 0 and self.arrived(lab, data)
        log_out(lab.target())  # type: ignore[arg-type]
