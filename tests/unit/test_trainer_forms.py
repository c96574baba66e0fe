"""In which forms people have their images, and what is said of each."""

from __future__ import annotations

import os
import shutil
import tarfile
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.training import pixels_of
from trainer.data.archive import DataError
from trainer.data.images import ImageData
from trainer.data.listing import list_images, listing_hashes
from trainer.data.sources import load_images


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(folder: Path, **counts: int) -> Path:
    """`counts` images of each class, each of one shade that is its own."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for image in range(count):
            shade = (40 * number + image) % 256
            Image.new("RGB", (32, 32), (shade, number, image)).save(folder / name / f"{image}.png")
    return folder


def load(place: Path, skip_damaged: bool = False) -> tuple[ImageData, list[str]]:
    said: list[str] = []
    data = load_images(str(place), said.append, skip_damaged=skip_damaged)
    return data, [text for text in said if not text.startswith(("decoding", "unpacking"))]


def refusal(place: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def counts(data: ImageData) -> list[dict[str, int]]:
    """Images per class to train on, to validate on, to test on."""
    return [
        dict(Counter(data.classes[label] for label in part.labels.tolist())) if part else {}
        for part in (data.train, data.validation, data.test)
    ]


def split_folder(tmp_path: Path, *parts: str) -> Path:
    for number, part in enumerate(parts, 3):
        write(tmp_path / "set" / part, cat=number, dog=number)
    return tmp_path / "set"


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_beside_test_is_validated_on(tmp_path: Path, name: str) -> None:
    data, said = load(split_folder(tmp_path, "train", "test", name))
    assert counts(data) == [{"cat": n, "dog": n} for n in (3, 5, 4)] and said == []


def test_a_validation_folder_in_place_of_test_is_tested_on(tmp_path: Path) -> None:
    data, said = load(split_folder(tmp_path, "train", "valid"))
    assert counts(data) == [{"cat": 3, "dog": 3}, {}, {"cat": 4, "dog": 4}]
    assert said == ["there is no test set: the validation set is tested on, once, at the end"]


def test_a_folder_without_a_split_is_split_by_class_and_always_the_same(tmp_path: Path) -> None:
    data, said = load(write(tmp_path / "set", cat=50, dog=20, owl=5, yak=1))
    assert counts(data)[0] == {"cat": 40, "dog": 16, "owl": 4, "yak": 1}
    assert counts(data)[2] == {"cat": 10, "dog": 4, "owl": 1}
    assert said == [
        "no split there: 15 of 76 images are kept for the test, 20% of each class by a fixed seed",
        "'yak' has a single image to train on",
        "'yak' has no image to test on, its accuracy stays unknown",
    ]
    shutil.copytree(tmp_path / "set", tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere")[0].sha256 == data.sha256


def test_too_few_images_to_keep_some_for_the_test_are_told_so(tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "set", cat=1, dog=1))
    assert "has no test set, and one image of each class" in text


def test_a_path_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    """A typing error must not become a training on other images."""
    assert f"no such file or folder: {tmp_path / 'potos'};" in refusal(tmp_path / "potos")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert f"no such file or folder: {tmp_path / 'link'};" in refusal(tmp_path / "link")
    assert [entry.name for entry in tmp_path.iterdir()] == ["link"]


def test_a_table_says_where_the_images_are_and_what_they_show(tmp_path: Path) -> None:
    write(tmp_path / "set" / "files", a=4, b=4)
    rows = [
        f"files/{folder}/{number}.png,{'cat' if folder == 'a' else 'dog, large'},{split}"
        for folder in "ab"
        for number, split in enumerate(("train", "train", "VALID", "test"))
    ]
    table = tmp_path / "set" / "labels.csv"
    lines = [row.replace("dog, large", '"dog, large"') for row in rows]
    table.write_text("\ufeffFile,Class,Split\r\n" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    for place in (table, table.parent):
        data, said = load(place)
        assert data.classes == ("cat", "dog, large") and said == []
        assert (data.kind, data.path) == ("table", str(table))
        assert counts(data) == [{"cat": n, "dog, large": n} for n in (2, 1, 1)]
    table.write_text("\n".join([*lines, lines[0]]))
    assert len(load(table)[0].train) == 5, "an image may count twice in the training"
    table.write_text("\n".join(line.rpartition(",")[0] for line in lines))
    data, said = load(table)
    assert len(data.train) == 6 and len(data.test) == 2 and said[0].startswith("no split there: 2")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("path,label\na/0.png,x\na/9.png,x", "line 3 of {} names a/9.png, which isn't there"),
        ("path,label,split\na/0.png,x,holdout", "line 2 of {} has the split 'holdout': it must"),
        ("path,label\na/0.png,", "line 2 of {} has no label: add it or"),
        ("where,what\na/0.png,x", "{} needs the columns path,label[,split] in its first line"),
        ("", "{} needs the columns path,label"),
        ("path,label\na/0.png,x", "needs two classes or more, and has x"),
        (
            "path,label\na/0.png,x\n./a/0.png,y",
            "lines 2 and 3 of {} name the same image, ./a/0.png",
        ),
        ("path,label,split\na/0.png,x,train\na/0.png,x,test", "lines 2 and 3 of {} name the same"),
    ],
)
def test_a_table_that_is_wrong_is_one_line(tmp_path: Path, text: str, what: str) -> None:
    write(tmp_path, a=2)
    table = tmp_path / "t.csv"
    table.write_text(text)
    assert what.format(table) in refusal(table)
    table.write_bytes(b"path,label\n\xff\xfe,x")
    assert "is no CSV in UTF-8" in refusal(table)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz", ".tar.xz"])
def test_an_archive_of_any_form_is_unpacked_once(tmp_path: Path, suffix: str) -> None:
    folder = split_folder(tmp_path, "train", "test")
    expected, _ = load(folder)
    packed = tmp_path / "upload" / f"photos{suffix}"
    packed.parent.mkdir()
    if suffix == ".zip":
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("__MACOSX/._set", b"x")
            for file in sorted(folder.rglob("*.png")):
                archive.write(file, f"my photos/{file.relative_to(folder)}")
    else:
        modes = {".tar": "w:", ".tgz": "w:gz", ".tar.xz": "w:xz"}
        with tarfile.open(packed, modes[suffix]) as tar:  # type: ignore[call-overload]
            tar.add(folder, "my photos", filter=lambda m: None if ".decoded" in m.name else m)
    for place in (packed, packed.parent):
        data, _ = load(place)
        assert data.sha256 == expected.sha256 and data.classes == expected.classes
    said: list[str] = []
    load_images(str(packed), said.append)
    assert said == []


class Unmarked(zipfile.ZipInfo):
    """A name as Chinese Windows writes it: in its own code page, and not marked as UTF-8."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode("gb18030"), self.flag_bits & ~0x800


def test_names_from_a_chinese_windows_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", a=3, b=3)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in folder.rglob("*.png"):
            name = f"{'猫' if file.parent.name == 'a' else '狗'}/{file.name}"
            archive.writestr(Unmarked(name), file.read_bytes())
    assert load(tmp_path / "photos.zip")[0].classes == ("狗", "猫")


def test_a_damaged_or_hostile_archive_writes_nothing_and_is_one_line(tmp_path: Path) -> None:
    packed = tmp_path / "photos.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../outside.png", b"x")
    assert "holds neither" in refusal(packed)
    assert not list(tmp_path.parent.glob("outside*")) and not (tmp_path / "outside.png").exists()
    packed.write_bytes(packed.read_bytes()[:-10])
    assert f"{packed} can't be unpacked (" in refusal(packed)
    assert not list((tmp_path / ".decoded").glob("*.tmp"))


def test_what_is_no_image_of_the_set_is_ignored_and_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", cat=5, dog=5)
    for name in ("__MACOSX/cat/._1.png", "cat/.ipynb_checkpoints/1.png", "cat/Thumbs.db"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    for name in ("dog/notes.txt", "dog/more.txt", "dog/._0.png"):
        (folder / name).write_bytes(b"x")
    data, said = load(folder)
    assert len(data.train) + len(data.test) == 10 and data.classes == ("cat", "dog")
    assert said[0].startswith("ignored files that are no images of the set (6): .txt (2), ")
    for what in ("__MACOSX (1)", ".ipynb_checkpoints (1)", "Thumbs.db (1)", "hidden (1)"):
        assert what in said[0]


def test_a_class_that_is_missing_in_a_split_is_said(tmp_path: Path) -> None:
    folder = split_folder(tmp_path, "train", "test")
    shutil.rmtree(folder / "test" / "dog")
    assert load(folder)[1] == ["'dog' has no image to test on, its accuracy stays unknown"]
    write(folder / "test", fox=1)
    assert "has classes that train/ lacks, fox" in refusal(folder)


def test_damaged_files_are_named_or_left_out_and_listed(tmp_path: Path) -> None:
    folder = split_folder(tmp_path, "train", "test")
    damaged = [folder / "train" / "cat" / "1.png", folder / "test" / "dog" / "2.png"]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:60])
    text = refusal(folder)
    assert text.startswith(f"{damaged[0]} is no image that can be read (")
    assert "; so are 1 others: test/dog/2.png: remove or replace it, or leave out" in text
    assert refusal(folder) == text, "also when it was found before"
    data, said = load(folder, skip_damaged=True)
    assert counts(data) == [{"cat": 2, "dog": 3}, {}, {"cat": 4, "dog": 3}]
    assert said[0] == "2 damaged files are left out:" and str(damaged[1]) in said[2]
    assert data.damaged == ("train/cat/1.png", "test/dog/2.png")
    shades = pixels_of(data.train)[:, 0, 0, 0].tolist()
    assert shades == [0, 2, 40, 41, 42], "each image has its own label still"


def test_two_hundred_thousand_files_are_listed_in_seconds(tmp_path: Path) -> None:
    """A fiftieth of them, in a fiftieth of ten seconds."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(2000):
            os.close(os.open(tmp_path / name / f"{number}.jpg", os.O_CREAT))
    began = time.process_time()
    listing = list_images(tmp_path, print)
    assert listing is not None and len(listing.entries) == 4000
    listing_hashes(listing)
    assert time.process_time() - began < 0.2


def test_a_table_of_a_wide_range_of_images_keeps_their_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = []
    for number in range(30):
        name = f"{random.integers(10**9)}.png"
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / name)
        names.append(f"{name},{'odd' if number % 2 else 'even'},{'test' if number > 25 else ''}")
    (tmp_path / "t.csv").write_text("\n".join(names))
    data, _ = load(tmp_path)
    assert pixels_of(data.train)[:, 0, 0, 0].tolist() == list(range(26))
    assert data.train.labels.tolist() == [0, 1] * 13
