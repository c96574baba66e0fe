"""What was received of an upload stays until it has its place, whatever happens meanwhile."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from remote.agent.data import datasets
from remote.agent.releases.contents import forget, known_contents
from remote.agent.root.paths import Layout
from remote.agent.shared.trees import Entry, tree_hash

PHOTOS = {"cat/1.png": b"one", "cat/2.png": b"two", "dog/1.png": b"one"}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entries_of(files: dict[str, bytes]) -> list[Entry]:
    return [(path, 0o644, len(data), sha(data)) for path, data in sorted(files.items())]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(str(tmp_path))
    os.makedirs(layout.data_incoming)
    for data in PHOTOS.values():
        Path(layout.data_incoming, sha(data)).write_bytes(data)
    return layout


def test_a_set_that_can_not_be_laid_out_takes_nothing_with_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk is full, say: what took hours to arrive is not sent again."""
    entries = entries_of(PHOTOS)
    tree = tree_hash(entries)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    received = sorted(os.listdir(layout.data_incoming))
    with monkeypatch.context() as patched:
        patched.setattr(datasets, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            datasets.lay_out(layout, tree, entries, set(entries), {})
    assert sorted(os.listdir(layout.data_incoming)) == received and not os.listdir(layout.sets)
    datasets.lay_out(layout, tree, entries, set(entries), {})
    forget(layout.data_incoming, entries)
    assert not os.path.exists(layout.data_incoming)
    laid = {path: Path(layout.set(tree), path).read_bytes() for path in PHOTOS}
    assert laid == PHOTOS


def test_another_upload_that_was_cut_off_goes_on_where_it_stopped(layout: Layout) -> None:
    other = [sha(b"other"), sha(b"more") + ".part", sha(b"large") + "@8388608"]
    own = [sha(b"one") + ".part", sha(b"two") + "@0", sha(b"two") + "@0.1234abcd"]
    for name in (*other, *own):
        Path(layout.data_incoming, name).write_bytes(b"x")
    forget(layout.data_incoming, entries_of(PHOTOS))
    assert sorted(os.listdir(layout.data_incoming)) == sorted(other)


def test_what_a_power_cut_has_taken_is_not_there(layout: Layout) -> None:
    Path(layout.data_incoming, sha(b"two")).write_bytes(b"")
    assert set(known_contents(layout.data_incoming, [], entries_of(PHOTOS))) == {sha(b"one")}
