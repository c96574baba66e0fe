"""A large file over several channels of one login: all of it, verified, resumable, and over one
channel where there is no other."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from remote.ssh.openssh import log_out
from remote.transfer import lanes
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
    honest = lanes.Pieces.put

    def watched(self: lanes.Pieces, at: int, blob: bytes) -> None:
        carried.append(len(blob))
        honest(self, at, blob)

    monkeypatch.setattr(lanes.Pieces, "put", watched)
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
    honest = lanes.Pieces.put
    cut: list[int] = []

    def meddling(self: lanes.Pieces, at: int, blob: bytes) -> None:
        if not cut:
            cut.append(at)
            os.truncate(there / "big", 45_000_000)
        honest(self, at, blob)

    monkeypatch.setattr(lanes, "AHEAD", 1 << 20)
    monkeypatch.setattr(lanes.Pieces, "put", meddling)
    lab.task("fetch_results")  # it may say that this file could not be had as it was listed
    monkeypatch.setattr(lanes.Pieces, "put", honest)
    assert cut and lab.task("fetch_results").code == 0 and same(lab)
    log_out(lab.target())  # type: ignore[arg-type]


def test_a_file_that_changes_meanwhile_is_not_put_together_of_two_states(
    lab: KeptLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    (there,) = (lab.root / "runs").glob("2*/work")
    honest = lanes.Pieces.put
    changed: list[int] = []

    def meddling(self: lanes.Pieces, at: int, blob: bytes) -> None:
        honest(self, at, blob)
        if not changed:
            changed.append(at)
            with open(there / "big", "r+b") as file:
                file.seek(-1000, os.SEEK_END)
                file.write(os.urandom(1000))

    monkeypatch.setattr(lanes, "AHEAD", 1 << 20)
    monkeypatch.setattr(lanes.Pieces, "put", meddling)
    assert lab.task("fetch_results").code == 0 and changed and same(lab)
    log_out(lab.target())  # type: ignore[arg-type]
