"""Where images come from, and one clear line where they don't."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.training import pixels_of
from trainer.data import archive as archive_module
from trainer.data import cifar10
from trainer.data.archive import ARCHIVE, BATCHES, DataError
from trainer.data.sources import load_images

PER_BATCH = 6


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    about = tarfile.TarInfo(f"{BATCHES}/{name}")
    about.size = len(content)
    archive.addfile(about, io.BytesIO(content))


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In CIFAR-10's form, with six images a batch; its hashes stand for the official ones."""
    random = np.random.default_rng(0)
    path = tmp_path / "fake" / ARCHIVE
    path.parent.mkdir()
    sums = {}
    with tarfile.open(path, "w:gz") as file:
        add_file(file, "batches.meta", b"not needed")
        for name in cifar10.BATCH_MD5:
            pixels = random.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8)
            content = pickle.dumps(
                {b"data": pixels, b"labels": [number % 10 for number in range(PER_BATCH)]}
            )
            sums[name] = hashlib.md5(content).hexdigest()
            add_file(file, name, content)
    content = path.read_bytes()
    monkeypatch.setattr(cifar10, "BATCH_MD5", sums)
    monkeypatch.setattr(archive_module, "ARCHIVE_BYTES", len(content))
    monkeypatch.setattr(archive_module, "ARCHIVE_MD5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(archive_module, "RETRY_PAUSE_S", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


def refusal(data: Path | str, **options: Any) -> str:
    """The error's text: one line."""
    with pytest.raises(DataError) as caught:
        load_images(str(data), lambda text: None, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# -- CIFAR-10 in place


def test_an_archive_a_folder_with_it_and_the_unpacked_files_give_the_same(
    archive: Path, tmp_path: Path
) -> None:
    unpacked = tmp_path / "unpacked"
    with tarfile.open(archive) as file:
        file.extractall(unpacked, filter="data")
    found = [
        load_images(str(place)) for place in (archive, archive.parent, unpacked, unpacked / BATCHES)
    ]
    assert all(
        data.kind == "cifar10"
        and data.sha256 == found[0].sha256
        and data.classes == cifar10.CLASSES
        for data in found
    )
    assert (
        pixels_of(found[0].train).shape == (5 * PER_BATCH, 3, 32, 32)
        and pixels_of(found[0].train).dtype == torch.uint8
    )
    assert found[0].test.labels.tolist() == list(range(PER_BATCH))
    assert len(found[0].sha256) == 64


def test_a_truncated_archive_says_so(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])
    text = refusal(archive)
    assert "is truncated" in text and f"bring {ARCHIVE}" in text


def test_a_damaged_archive_says_so(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(bytes(content))
    text = refusal(archive.parent)
    assert "is damaged: its md5 is" in text and f"bring {ARCHIVE}" in text


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\xef\xbb\xbf\r\n <html>"])
def test_a_web_page_in_the_archive_s_place_says_so(archive: Path, page: bytes) -> None:
    archive.write_bytes(page + b"x" * 100_000)
    assert "is a web page, not the CIFAR-10 archive; bring" in refusal(archive)


def test_another_file_in_the_archive_s_place_says_so(archive: Path) -> None:
    archive.write_bytes(b"PK\x03\x04" + b"x" * 1000)
    assert "is not a .tar.gz archive; bring" in refusal(archive)


def test_no_pickle_is_opened_that_is_not_the_official_one(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    batch = tmp_path / "unpacked" / BATCHES / "data_batch_3"
    batch.write_bytes(b"cos\nabort\n(tR.")
    assert "data_batch_3 in" in refusal(tmp_path / "unpacked") and "is damaged; bring" in refusal(
        tmp_path / "unpacked"
    )
    batch.unlink()
    assert "data_batch_3 can't be read: No such file or directory; bring" in refusal(
        tmp_path / "unpacked"
    )


# -- downloaded


class Server(http.server.ThreadingHTTPServer):
    """`content` is sent, after `pause_s`; of the first `cuts` answers only half of what is left.
    `ranges` are those asked for."""

    content = b""
    pause_s = 0.0
    cuts = 0
    honours_range = True
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{ARCHIVE}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        start = int(asked.partition("=")[2].rstrip("-")) if asked and server.honours_range else 0
        if start and start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else server.status)
        rest = server.content[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        time.sleep(server.pause_s)
        if server.cuts:
            server.cuts -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def web(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    server.content = archive.read_bytes()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("CIFAR10_URL", server.url)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_missing_folder_gets_the_archive(web: Server, archive: Path, tmp_path: Path) -> None:
    said: list[str] = []
    data = load_images(str(tmp_path / "new" / "cifar10"), said.append)
    assert data.sha256 == load_images(str(archive)).sha256
    assert [file.name for file in (tmp_path / "new" / "cifar10").iterdir()] == [ARCHIVE]
    assert said[0].startswith("downloading CIFAR-10") and web.url in said[0]
    load_images(str(tmp_path / "new" / "cifar10"), said.append)
    assert len(web.ranges) == 1, "the second time it is there"


def test_trainings_that_start_at_once_download_it_once(web: Server, tmp_path: Path) -> None:
    """As those of a sweep do: two that append to one part have neither's archive."""
    web.pause_s = 0.5
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda _: load_images(str(tmp_path / "cifar10"), said.append), range(2))
        )
    assert web.ranges == [None] and found[0].sha256 == found[1].sha256
    assert "another training downloads CIFAR-10: waiting for that" in said


def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    web: Server, archive: Path, tmp_path: Path
) -> None:
    web.cuts = 2
    load_images(str(tmp_path / "cifar10"), lambda text: None)
    size = len(web.content)
    assert web.ranges == [
        None,
        f"bytes={size // 2}-",
        f"bytes={size // 2 + (size - size // 2) // 2}-",
    ]


def test_a_server_that_knows_no_ranges_is_read_from_the_start(web: Server, tmp_path: Path) -> None:
    web.cuts, web.honours_range = 1, False
    load_images(str(tmp_path / "cifar10"), lambda text: None)
    assert len(web.ranges) == 2


def test_a_part_from_another_archive_is_thrown_away(
    web: Server, archive: Path, tmp_path: Path
) -> None:
    part = tmp_path / "cifar10" / f"{ARCHIVE}.part"
    part.parent.mkdir()
    part.write_bytes(b"\x1f\x8b" + b"x" * 1000)
    load_images(str(part.parent), lambda text: None)
    assert web.ranges == ["bytes=1002-", None]


def test_a_web_page_is_refused_at_once(web: Server, tmp_path: Path) -> None:
    web.content = b"<html>please log in</html>"
    text = refusal(tmp_path / "cifar10")
    assert "what came is a web page; bring" in text and web.url in text
    assert len(web.ranges) == 1
    assert [file.suffix for file in (tmp_path / "cifar10").iterdir()] == [".lock"]


def test_a_wrong_archive_is_tried_twice_and_refused(web: Server, tmp_path: Path) -> None:
    web.content = web.content[:-1] + bytes([web.content[-1] ^ 1])
    text = refusal(tmp_path / "cifar10")
    assert "what came is damaged: its md5 is" in text and "; bring" in text
    assert len(web.ranges) == 2
    assert [file.suffix for file in (tmp_path / "cifar10").iterdir()] == [".lock"]


def test_a_server_with_less_than_we_have_is_no_endless_loop(web: Server, tmp_path: Path) -> None:
    web.content = web.content[:300]
    assert "; bring" in refusal(tmp_path / "cifar10")
    assert len(web.ranges) <= 5


def test_a_missing_page_is_refused_at_once(web: Server, tmp_path: Path) -> None:
    web.status = 404
    assert "Not Found; bring" in refusal(tmp_path / "cifar10")
    assert len(web.ranges) == 1


def test_no_server_is_one_line(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR10_URL", "http://127.0.0.1:9/nothing")
    assert "can't be downloaded from http://127.0.0.1:9/nothing: [Errno" in refusal(
        tmp_path / "cifar10"
    )
    assert "there are no images at" in refusal(tmp_path / "new2", download=False)


# -- a folder of images
