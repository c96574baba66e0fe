"""Frames: what is sent arrives, what can't be a frame is refused before memory is spent on it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.agent.shared import protocol
from remote.link.events import FollowEvent, RunNews, heard
from remote.records import GpuUse, Progress


def reader(data: bytes):  # type: ignore[no-untyped-def]
    stream = io.BytesIO(data)

    def read_exactly(count: int) -> bytes:
        piece = stream.read(count)
        if len(piece) < count:
            raise EOFError
        return piece

    return read_exactly


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), st.binary())
def test_round_trip(message: dict[str, object], blob: bytes) -> None:
    assert protocol.read_frame(reader(protocol.encode(message, len(blob)) + blob)) == (
        message,
        blob,
    )


def test_a_name_that_is_no_unicode_survives() -> None:
    message = {"path": b"caf\xe9".decode("utf-8", "surrogateescape")}
    assert protocol.read_frame(reader(protocol.encode(message)))[0] == message


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_short(data: bytes) -> None:
    try:
        message, _ = protocol.read_frame(reader(data), max_json=1000, max_blob=1000)
    except (EOFError, protocol.BadFrame):
        return
    assert isinstance(message, dict)


def test_a_giant_is_refused_by_its_header() -> None:
    with pytest.raises(protocol.BadFrame):
        protocol.read_frame(reader(protocol.HEADER.pack(2, 1 << 31) + b"{}"))


def test_deep_json_is_refused() -> None:
    text = b"[" * 100_000
    with pytest.raises(protocol.BadFrame):
        protocol.read_frame(reader(protocol.HEADER.pack(len(text), 0) + text))


@given(st.binary(max_size=5000))
def test_packing(data: bytes) -> None:
    blob, packed = protocol.pack(data)
    assert (protocol.unpack(blob, len(data)) if packed else blob) == data


def test_a_bomb_does_not_unpack_beyond_its_announcement() -> None:
    blob, packed = protocol.pack(bytes(1 << 20))
    assert packed
    with pytest.raises(protocol.BadFrame):
        protocol.unpack(blob, 1000)


def test_the_bootstrap_refuses_an_old_python_before_it_does_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (Path(protocol.__file__).parents[1] / "serve" / "bootstrap.py").read_text()
    monkeypatch.setattr(sys, "version_info", (3, 7, 16))
    with pytest.raises(SystemExit) as ended:
        exec(compile(text, "bootstrap", "exec"), {})
    assert ended.value.code == 96


def test_news_of_a_run_is_read_as_far_as_it_is_right() -> None:
    """Of an event that a hostile server sends, the parts of another type are as if left out."""
    found: list[FollowEvent] = []
    hear = heard(FollowEvent, lambda event, blob: found.append(event))
    hear({"log": 7, "line": 3, "state": {"run": "r"}, "gpu": {"0": {"power_w": "x"}}}, b"")
    hear({"log": True, "state": {"run": "r", "state": "queued", "waiting": "for a GPU"}}, b"")
    hear({"curves": {"loss": [1, "x"]}, "progress": {"epoch": [], "step": 3}}, b"")
    assert found == [
        FollowEvent(log=7, gpu={"0": GpuUse()}),
        FollowEvent(state=RunNews("r", "queued", "for a GPU")),
        FollowEvent(progress=Progress(step=3)),
    ]
