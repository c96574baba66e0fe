"""Where images come from, and one clear line where they don't."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import shutil
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
from PIL import Image

from tests.support.training import pixels_of
from trainer import command as cli
from trainer import options
from trainer.data import archive as archive_module
from trainer.data import cifar10
from trainer.data.archive import ARCHIVE, BATCHES, DataError
from trainer.data.images import ImageData
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes, three images each to train on, one each to test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            place = tmp_path / "images" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                    place / f"{number}.png"
                )
    return tmp_path / "images"


def load(folder: Path) -> tuple[ImageData, list[str]]:
    said: list[str] = []
    return load_images(str(folder), said.append), said


def test_a_folder_is_decoded_once_and_then_comes_from_the_cache(folder: Path) -> None:
    first, said = load(folder)
    assert said == [f"decoding 8 images of {folder}"]
    assert (
        first.classes == ("cat", "dog")
        and first.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        and first.kind == "folder"
    )
    pixels = np.asarray(Image.open(folder / "train" / "cat" / "0.png")).transpose(2, 0, 1)
    assert np.array_equal(pixels_of(first.train)[0].numpy(), pixels)
    again, said = load(folder)
    assert said == []
    assert torch.equal(pixels_of(again.train), pixels_of(first.train)) and torch.equal(
        again.test.labels, first.test.labels
    )
    assert (again.sha256, again.classes, again.kind) == (first.sha256, first.classes, first.kind)


def test_a_changed_folder_is_decoded_anew(folder: Path) -> None:
    load(folder)
    Image.new("RGB", (32, 32)).save(folder / "train" / "cat" / "9.png")
    data, said = load(folder)
    assert len(said) == 1 and len(data.train) == 7


def test_a_damaged_cache_is_decoded_anew(folder: Path) -> None:
    first, _ = load(folder)
    [cache] = (folder / ".decoded").iterdir()
    for content in (cache.read_bytes()[:-200], b"", b"PK\x03\x04 broken"):
        cache.write_bytes(content)
        data, said = load(folder)
        assert len(said) == 1 and data.sha256 == first.sha256


def test_a_folder_that_can_t_be_written_works_all_the_same(folder: Path, tmp_path: Path) -> None:
    """A file stands where the cache would be made: no user, root included, can write there."""
    (folder / ".decoded").write_text("")
    first, _ = load(folder)
    assert [file.suffix for file in (tmp_path / "cache" / "trainer-images").iterdir()] == [".npz"]
    assert load(folder)[1] == [], "kept in the user's cache"
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("")
    data, said = load(folder)
    assert len(said) == 1 and data.sha256 == first.sha256


def test_every_kind_of_image_becomes_32_by_32_in_rgb(folder: Path) -> None:
    place = folder / "train" / "cat"
    for file in place.iterdir():
        file.unlink()
    Image.new("L", (32, 32), 77).save(place / "a_grey.png")
    Image.new("RGBA", (50, 20), (200, 10, 10, 0)).save(place / "b_transparent.png")
    Image.new("RGBA", (50, 20), (200, 10, 10, 255)).save(place / "c_opaque.png")
    palette = Image.new("P", (7, 31), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(place / "d_palette.png")
    Image.new("RGB", (1, 500), (1, 2, 3)).save(place / "e_thin.bmp")
    Image.fromarray(np.full((40, 40), 0x8123, dtype=np.uint16)).save(place / "f_16_bits.png")
    Image.new("CMYK", (64, 64)).save(place / "g_cmyk.jpg")
    Image.new("LA", (33, 33), (90, 255)).save(place / "h_grey_alpha.png")
    Image.new("1", (32, 32), 1).save(place / "i_black_white.png")
    data, said = load(folder)
    colours = [
        image.flatten(1).float().mean(1).round().int().tolist()
        for image in pixels_of(data.train)[:9]
    ]
    assert colours == [
        [77] * 3,
        [255] * 3,
        [200, 10, 10],
        [10, 20, 30],
        [1, 2, 3],
        [0x81] * 3,
        [255] * 3,
        [90] * 3,
        [255] * 3,
    ]
    assert {f"images converted to RGB: {what}" for what in ("1 grey", "1 of 16 bits")} <= {*said}


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"\x89PNG\r\n\x1a\nbroken", b"II*\0\xff\xff\xff\xff"]
)
def test_a_damaged_image_is_named(folder: Path, content: bytes) -> None:
    (folder / "test" / "dog" / "bad.png").write_bytes(content)
    text = refusal(folder)
    assert str(folder / "test" / "dog" / "bad.png") in text and text.endswith(
        ": remove or replace it, or leave out what is damaged with --skip_damaged"
    )


def test_a_truncated_image_is_named(folder: Path) -> None:
    file = folder / "train" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:-500])
    assert f"{file} is no image that can be read" in refusal(folder)


def test_an_empty_class_folder_is_named(folder: Path) -> None:
    for name in ("bee", "ant"):
        (folder / "train" / name).mkdir()
    (folder / "train" / "ant" / "notes.txt").write_text("")
    assert (
        refusal(folder)
        == f"no image in {folder / 'train' / 'ant'}: fill the folder or remove it (the same for"
        " bee)"
    )


def test_a_missing_or_empty_test_folder_is_named(folder: Path) -> None:
    for name in ("cat", "dog"):
        (folder / "test" / name / "0.png").unlink()
    assert refusal(folder).startswith(f"no image in {folder / 'test'}: put some into")
    shutil.rmtree(folder / "test")
    assert refusal(folder).startswith(f"{folder} has train/ but no test/: put images")


def test_a_class_that_is_only_tested_is_named(folder: Path) -> None:
    (folder / "test" / "fox").mkdir()
    assert (
        refusal(folder)
        == f"{folder / 'test'} has classes that train/ lacks, fox: add images of them there, or"
        " remove them"
    )


def test_one_class_is_too_few(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "dog")
    shutil.rmtree(folder / "test" / "dog")
    assert "needs two classes or more, and has cat: put" in refusal(folder)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    assert "holds neither CIFAR-10 nor train/<class>/*" in refusal(tmp_path)


def test_a_path_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "no such file or folder" in refusal(tmp_path / "file" / "below")


def test_the_command_ends_with_3_and_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train" / "ant").mkdir()
    code = cli.main(
        ["--data", str(folder), "--accelerator", "cpu", "--run_dir", str(tmp_path / "run")]
    )
    shown = capsys.readouterr()
    assert code == options.EXIT_DATA == 3
    assert (
        shown.err
        == f"error: no image in {folder / 'train' / 'ant'}: fill the folder or remove it\n"
    )
    assert not (tmp_path / "run" / "summary.json").exists()
