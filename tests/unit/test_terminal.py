"""What a terminal shows, as lines for a log: what is drawn over again counts once."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.agent.training import terminal
from remote.agent.training.terminal import LINES, Screen, Terminal


def log_of(*pieces: bytes) -> bytes:
    screen = Screen()
    return b"".join(screen.feed(piece) for piece in pieces) + screen.finish()


@pytest.mark.parametrize(
    ("stream", "log"),
    [
        (b"one\r\ntwo\r\n", b"one\ntwo\n"),
        (b"  0%\r 50%\r100%\r\n", b"100%\n"),
        (b"\r  0%\r 50%", b" 50%"),
        (b"\x1b[32mgreen\x1b[0m\r\n", b"green\n"),
        (b"\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b\r\n", b"ab\n"),
        (b"abc\x08\x08d\r\n", b"ad\n"),
        (b"a\rb\r\n\r\nc", b"b\n\nc"),
        (b"", b""),
        (b"\r", b""),
        (b"\n", b"\n"),
        (b"\rlong line\r\x1b[Kshort\r\n", b"short\n"),
        (b"\x1b[" + b"9" * 5000 + b"Aup\r\n", b"up\n"),  # no number that python reads
    ],
)
def test_lines(stream: bytes, log: bytes) -> None:
    assert log_of(stream) == log
    assert log_of(stream) == log_of(*[stream[at : at + 1] for at in range(len(stream))])


def test_a_block_that_is_drawn_anew_is_there_once() -> None:
    """As rich and tqdm do with several bars: up, and each line again."""
    first = b"epoch 1\r\n  loss 0.9\r\n"
    again = [
        b"\x1b[2A\r\x1b[2Kepoch 1\r\n\x1b[2K  loss 0.%d\r\n" % number for number in range(8, 4, -1)
    ]
    assert log_of(b"begin\r\n", first, *again, b"end\r\n").splitlines()[-3:] == [
        b"epoch 1",
        b"  loss 0.5",
        b"end",
    ]
    assert len(log_of(first, *again).splitlines()) <= 4


def test_what_is_held_back_comes_when_it_is_quiet() -> None:
    screen = Screen()
    screen.feed(b"a\r\nb\r\n\x1b[2Aa\r\nb\r\n")
    assert (
        screen.holds_lines
        and screen.finish(final=False).endswith(b"b\n")
        and not screen.holds_lines
    )
    screen.feed(b"half")
    assert screen.line == "half" and screen.finish() == b"half"


@given(
    st.lists(
        st.sampled_from(
            [
                b"a",
                b"bc\n",
                b"\r",
                b"\r\n",
                b"\x1b[",
                b"A",
                b"3A",
                b"\x1b[2K",
                b"\x1b]0;",
                b"\x07",
                b"\x08",
                b"\xff",
            ]
        )
    )
)
def test_any_stream_ends_and_holds_no_more_than_a_screen(pieces: list[bytes]) -> None:
    screen = Screen()
    for piece in pieces:
        screen.feed(piece)
        assert len(screen.rows) <= LINES + 1 and 0 <= screen.row < len(screen.rows)
    screen.finish()
    assert b"\r" not in log_of(*pieces)


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20), max_size=20
    )
)
def test_plain_lines_stay_as_they_are(lines: list[str]) -> None:
    text = "".join(line + "\r\n" for line in lines).encode()
    assert log_of(text) == text.replace(b"\r\n", b"\n")


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """Of a terminal: its own, and the one that a program has."""
    own, programs = terminal.open_terminal()
    yield own, programs
    os.close(own)
    os.close(programs)


def test_a_key_typed_by_mistake_holds_up_no_training(ends: tuple[int, int]) -> None:
    own, programs = ends
    os.write(own, b"\x13")  # Ctrl-S
    select.select([own], [], [], 0.2)
    os.set_blocking(programs, False)
    os.write(programs, b"epoch 1")
    shown = b""
    while b"epoch 1" not in shown:
        assert select.select([own], [], [], 5)[0], shown
        shown += os.read(own, 100)


def test_keys_that_no_program_reads_hold_up_no_output(
    ends: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody pastes a page into the terminal of a training."""
    kept = Terminal(str(tmp_path), ends[0])

    def paste() -> None:
        for _ in range(100):
            kept._pass_keys()

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", lambda fd, count: b"a line\n" * (count // 7))
        pasting = threading.Thread(target=paste, daemon=True)
        pasting.start()
        pasting.join(10)
    assert not pasting.is_alive() and os.get_blocking(ends[0])
    os.close(kept.log)


def test_what_a_full_disk_did_not_take_is_in_the_log_later(
    ends: tuple[int, int], tmp_path: Path
) -> None:
    kept = Terminal(str(tmp_path), ends[0])
    log, kept.log = kept.log, os.open(tmp_path / "train.log", os.O_RDONLY)
    kept._write_log(b"epoch 1\n")
    kept._write_log(b"x" * 2 * terminal.KEPT)
    assert len(kept.unwritten) == terminal.KEPT
    kept._write_log(b"\nepoch 2\n")
    os.close(kept.log)
    kept.log = log
    kept._write_log(b"epoch 3\n")
    written = (tmp_path / "train.log").read_bytes()
    assert written.endswith(b"x\nepoch 2\nepoch 3\n") and not kept.unwritten
    os.close(log)


def test_last_words_are_read_though_it_is_told_to_end(
    ends: tuple[int, int], tmp_path: Path
) -> None:
    """The disk stood still meanwhile; a program that went its own way still has the terminal."""
    kept = Terminal(str(tmp_path), ends[0])
    kept.over = True
    os.write(ends[1], b"a line of its output\n" * 600 + b"RuntimeError: the cause\n")
    before = signal.getsignal(signal.SIGUSR1)
    kept.run()
    signal.signal(signal.SIGUSR1, before)
    assert (tmp_path / "train.log").read_bytes().endswith(b"RuntimeError: the cause\n")
    os.close(kept.log)
