"""Folders of images: decoded once, every kind of file, and what is wrong with one in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.training import pixels_of
from tests.unit.test_trainer_sources import refusal
from trainer import options
from trainer import train as cli
from trainer.data.images import ImageData
from trainer.data.sources import load_images


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
