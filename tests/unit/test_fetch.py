"""What a fetch plans, and what it refuses from a server."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.agent.shared.trees import SYMLINK
from remote.errors import ProtocolError, TransferFailed
from remote.records import Run
from remote.transfer.manifest import PARTS, RemoteFile, checked_manifest, holds_name, safe_path
from remote.transfer.receiving import Fetched, LocalBytes, Receiver, plan_fetch, read_local


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def receive(
    directory: Path, files: list[RemoteFile], events: list[tuple[dict[str, Any], bytes]]
) -> Receiver:
    plan = plan_fetch(files, lambda file: read_local(directory, file))
    receiver = Receiver(directory, plan, Fetched(directory, Run("r")), lambda done, total: None)
    try:
        for event, blob in events:
            receiver.event(event, blob)
    finally:
        receiver.close()
    receiver.make_links()
    return receiver


def whole(path: str, data: bytes, offset: int = 0) -> tuple[dict[str, Any], bytes]:
    return {"file": path, "offset": offset, "done": sha(data)}, data[offset:]


def test_a_file_appears_whole(tmp_path: Path) -> None:
    receive(tmp_path, [RemoteFile("sub/a", 3, 0o644, None)], [whole("sub/a", b"abc")])
    assert (tmp_path / "sub/a").read_bytes() == b"abc"
    assert os.listdir(tmp_path / "sub") == ["a"]


def test_an_interrupted_file_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = RemoteFile("a", 6, 0o644, None)
    receive(tmp_path, [file], [({"file": "a", "offset": 0}, b"abc")])
    assert os.listdir(tmp_path) == [PARTS]
    plan = plan_fetch([file], lambda f: read_local(tmp_path, f))
    have = plan.wanted[0][1]
    assert have and (have.size, have.part, have.digest.hexdigest()) == (3, True, sha(b"abc"))
    assert plan.bytes_at_most == 3
    receive(tmp_path, [file], [whole("a", b"abcdef", 3)])
    assert (tmp_path / "a").read_bytes() == b"abcdef"
    assert not os.listdir(tmp_path / PARTS)


def test_a_file_that_grew_gets_only_its_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\n")
    receive(tmp_path, [RemoteFile("log", 8, 0o644, None)], [whole("log", b"one\ntwo\n", 4)])
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_a_file_that_was_replaced_comes_anew(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    receive(tmp_path, [RemoteFile("a", 3, 0o644, None)], [whole("a", b"new")])
    assert (tmp_path / "a").read_bytes() == b"new"


def test_an_unchanged_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    before = (tmp_path / "a").stat().st_mtime_ns
    receiver = receive(tmp_path, [RemoteFile("a", 3, 0o644, None)], [whole("a", b"old", 3)])
    assert receiver.fetched.changed == 0 and (tmp_path / "a").stat().st_mtime_ns == before


def test_a_file_is_as_old_as_it_is_there(tmp_path: Path) -> None:
    """What goes on elsewhere looks for the checkpoint that was written last."""
    for changed in (1_700_000_000.25, 1_700_000_001.5):  # the second one is here already
        [file], _ = checked_manifest([["a", 3, 0o644, None, changed]])
        receive(tmp_path, [file], [whole("a", b"abc", 3 if (tmp_path / "a").exists() else 0)])
        assert (tmp_path / "a").stat().st_mtime == changed
    for strange in ("x", float("nan"), -1, 1e300, None):
        [file], _ = checked_manifest([["a", 3, 0o644, None, strange]])
        assert file.changed is None


def test_wrong_bytes_never_get_the_name(tmp_path: Path) -> None:
    receiver = receive(
        tmp_path,
        [RemoteFile("a", 3, 0o644, None)],
        [({"file": "a", "offset": 0, "done": sha(b"abc")}, b"abX")],
    )
    assert (
        [file.path for file in receiver.wrong] == ["a"]
        and not (tmp_path / "a").exists()
        and not os.listdir(tmp_path / PARTS)
    )


def test_what_is_empty_by_now_does_not_get_the_beginning_of_what_it_was(tmp_path: Path) -> None:
    receive(tmp_path, [RemoteFile("a", 6, 0o644, None)], [({"file": "a", "offset": 0}, b"abc")])
    receive(tmp_path, [RemoteFile("a", 0, 0o644, None)], [whole("a", b"")])
    assert (tmp_path / "a").read_bytes() == b""


def test_two_fetches_into_one_place_leave_no_file_spoiled(tmp_path: Path) -> None:
    """Where no lock keeps them apart: what is taken for whole has its bytes on the disk."""
    file, data = RemoteFile("a", 6, 0o644, None), b"abcdef"
    plan = plan_fetch([file], lambda file: read_local(tmp_path, file))
    one, other = (
        Receiver(tmp_path, plan, Fetched(tmp_path, Run("r")), lambda done, total: None)
        for _ in range(2)
    )
    for receiver in (one, other):
        receiver.event({"file": "a", "offset": 0}, data[:3])
    one.event({"done": sha(data)}, data[3:])
    other.event({"done": sha(data)}, data[3:])
    assert (tmp_path / "a").read_bytes() == data
    assert [one.wrong, other.wrong] == [[], [file]]


def test_known_source_is_not_asked_for(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"x")
    file = RemoteFile("source/a", 1, 0o644, digest.hexdigest())
    plan = plan_fetch([file], lambda f: LocalBytes(1, digest, False))
    assert plan.wanted == () and plan.same == 1


def test_a_hash_that_differs_from_the_release_is_wrong(tmp_path: Path) -> None:
    receiver = receive(
        tmp_path, [RemoteFile("source/a", 3, 0o644, sha(b"abc"))], [whole("source/a", b"xyz")]
    )
    assert receiver.wrong


@pytest.mark.parametrize(
    "path",
    [
        "../a",
        "/etc/passwd",
        "a/../../b",
        "",
        ".",
        "a//b",
        "a/./b",
        "a\0b",
        "x" * 300,
        ".fetch",
        ".fetch/a",
        "a/",
        "/",
        "..",
        "a/..",
        "y/" * 1500,
    ],
)
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(ProtocolError):
        checked_manifest([[path, 1, 0o644, None]])


@pytest.mark.parametrize(
    "path", ["a:b", "con", "NUL.txt", "a\\b", "a ", "a.", "x|y", "a\nb", "C:/x"]
)
def test_windows_refuses_what_its_file_system_twists(path: str) -> None:
    assert not holds_name(path, "win32") and holds_name(path, "linux")
    files, left = (
        checked_manifest([[path, 1, 0o644, None], ["b", 1, 0o644, None]], "win32")
        if path != "C:/x"
        else ([], [])
    )
    assert [file.path for file in files] in (["b"], []) and all(row.lost for row in left)


def test_names_that_a_disk_takes_for_one_are_not_written_over_each_other() -> None:
    rows = [
        ["Model.pt", 1, 0o644, None],
        ["model.pt", 2, 0o644, None],
        ["e\u0301", 1, 0o644, None],
        ["\u00e9", 1, 0o644, None],
    ]
    files, left = checked_manifest(rows, "darwin")
    assert [file.path for file in files] == ["Model.pt", "e\u0301"] and [
        row.path for row in left
    ] == ["model.pt", "\u00e9"]
    assert all(row.lost for row in left) and len(checked_manifest(rows, "linux")[0]) == 4


@pytest.mark.parametrize(
    "row",
    [
        ["a", -1, 0o644, None],
        ["a", 1 << 60, 0o644, None],
        ["a", True, 0o644, None],
        ["a", "1", 0o644, None],
        ["a", 1, 0o4755, None],
        ["a", 1, 0o644, "short"],
        ["a", 1, 0o644],
        "a",
        None,
        5,
        [None, 1, 0o644, None],
        ["a", 1, 0o600, None],
        ["source/a", 10000, SYMLINK, None],
        ["a", 1.5, 0o644, None],
    ],
)
def test_impossible_rows_are_refused(row: Any) -> None:
    with pytest.raises(ProtocolError):
        checked_manifest([row])


def test_a_file_named_twice_is_refused() -> None:
    with pytest.raises(ProtocolError):
        checked_manifest([["a", 1, 0o644, None], ["a", 2, 0o644, None]])


@pytest.mark.parametrize(
    "events",
    [
        [({"file": "b", "offset": 0, "done": None}, b"")],
        [({"file": "a", "offset": 0}, b"abcd")],
        [({"file": "a", "offset": 2}, b"c")],
        [({"file": "a", "offset": -1}, b"c")],
        [({"file": "a", "offset": "0"}, b"c")],
        [({}, b"abc")],
        [({"file": "a", "offset": 0}, b"a"), ({"file": "a", "offset": 0}, b"a")],
        [whole("a", b"abc"), whole("a", b"abc")],
    ],
)
def test_a_server_that_breaks_the_order_is_refused(
    tmp_path: Path, events: list[tuple[dict[str, Any], bytes]]
) -> None:
    with pytest.raises(ProtocolError):
        receive(tmp_path, [RemoteFile("a", 3, 0o644, None)], events)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", "../checkpoints/x", "a/../../../x"])
def test_links_out_of_the_source_are_refused(tmp_path: Path, target: str) -> None:
    data = target.encode()
    with pytest.raises(ProtocolError, match="link"):
        receive(
            tmp_path,
            [RemoteFile("source/l", len(data), SYMLINK, sha(data))],
            [whole("source/l", data)],
        )
    assert not (tmp_path / "source/l").is_symlink()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", "../../checkpoints"])
def test_links_out_of_the_run_are_refused(tmp_path: Path, target: str) -> None:
    data = target.encode()
    with pytest.raises(ProtocolError, match="link"):
        receive(tmp_path, [RemoteFile("work/l", len(data), SYMLINK, None)], [whole("work/l", data)])
    assert not (tmp_path / "work/l").is_symlink()


def test_a_link_to_another_file_of_the_run_comes_as_one(tmp_path: Path) -> None:
    receive(
        tmp_path,
        [RemoteFile("work/last", 14, SYMLINK, None)],
        [whole("work/last", b"../checkpoints")],
    )
    assert os.readlink(tmp_path / "work/last") == "../checkpoints"


def test_a_link_that_leads_elsewhere_by_now_comes_anew(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to("a")
    file = RemoteFile("l", 2, SYMLINK, None)
    assert plan_fetch([file], lambda f: read_local(tmp_path, f)).wanted == ((file, None),)
    receive(tmp_path, [file], [whole("l", b"ab")])
    assert os.readlink(tmp_path / "l") == "ab"
    again = receive(tmp_path, [file], [whole("l", b"ab", 2)])
    assert os.readlink(tmp_path / "l") == "ab" and again.fetched.changed == 0


def test_a_link_here_does_not_lead_what_is_written_away(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    inside = tmp_path / "run"
    inside.mkdir()
    (inside / "logs").symlink_to(outside)
    with pytest.raises(TransferFailed, match="link"):
        receive(inside, [RemoteFile("logs/a", 3, 0o644, None)], [whole("logs/a", b"abc")])
    assert os.listdir(outside) == []


@given(st.text(max_size=60))
def test_safe_paths_stay_inside(path: str) -> None:
    if safe_path(path):
        assert os.path.normpath(os.path.join("/base", path)).startswith("/base/")
