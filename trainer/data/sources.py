"""Where images come from: CIFAR-10 as an archive, unpacked or downloaded; a folder of images; or
made up."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.archive import ARCHIVE, REMEDY, DataError, check_archive, download_archive

SIZE = 32
"""Pixels per side; images of another size are brought to it."""
BATCHES = "cifar-10-batches-py"
BATCH_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""Pickles: none is opened whose md5 is not that of the official file."""
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class Arrays:
    """images: uint8 [N, 3, 32, 32]; labels: int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Arrays:
        return Arrays(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class ImageData:
    """All images of a training. `sha256` is over pixels and labels; `kind`: cifar10, folder or
    synthetic."""

    train: Arrays
    test: Arrays
    classes: tuple[str, ...]
    kind: str
    path: str
    sha256: str = ""


def load_images(data: str, say: Callable[[str], None] = print, download: bool = True) -> ImageData:
    """Raises DataError. `say` takes what a person should know."""
    if data == "synthetic":
        found = make_synthetic()
    else:
        try:
            found = _load_path(Path(os.path.expanduser(data)), say, download)
        except OSError as error:
            place = error.filename or data
            raise DataError(
                f"{place} can't be read ({error.strerror or error}): give this user access, or name"
                " another --data"
            ) from None
    return found if found.sha256 else dataclasses.replace(found, sha256=hash_images(found))


def _load_path(path: Path, say: Callable[[str], None], download: bool) -> ImageData:
    if path.is_file():
        return load_archive(path)
    if (path / "train").is_dir():
        return load_folder(path, say)
    for place in (path / BATCHES, path):
        if (place / "test_batch").exists():
            return load_batches(place)
    archive = path / ARCHIVE
    if archive.exists():
        return load_archive(archive)
    # A download that broke off leaves its part, which is gone on with.
    if path.is_dir() and any(
        entry for entry in path.iterdir() if not entry.name.startswith((".", ARCHIVE))
    ):
        raise DataError(
            f"{path} holds neither CIFAR-10 nor train/<class>/* and test/<class>/*; name a folder"
            " that does, or an empty one for a download"
        )
    if not download:
        raise DataError(f"there are no images at {path}; {REMEDY}")
    download_archive(archive, say)
    return load_archive(archive)


def hash_images(data: ImageData) -> str:
    digest = hashlib.sha256()
    for part in (data.train, data.test):
        digest.update(part.images.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()


# CIFAR-10


def load_archive(path: Path) -> ImageData:
    check_archive(path)
    contents = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in BATCH_MD5 and member.isfile():
                file = archive.extractfile(member)
                contents[name] = file.read() if file else b""
    return _from_batches(contents, path)


def load_batches(directory: Path) -> ImageData:
    contents = {}
    for name in BATCH_MD5:
        try:
            contents[name] = (directory / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"{directory / name} can't be read: {error.strerror}; {REMEDY}"
            ) from None
    return _from_batches(contents, directory)


def _from_batches(contents: dict[str, bytes], path: Path) -> ImageData:
    import pickle

    parts = {}
    for name, md5 in BATCH_MD5.items():
        content = contents.get(name, b"")
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise DataError(f"{name} in {path} is {'damaged' if content else 'missing'}; {REMEDY}")
        batch = pickle.loads(content, encoding="bytes")
        images = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, SIZE, SIZE)
        parts[name] = Arrays(
            torch.from_numpy(images), torch.tensor(batch[b"labels"], dtype=torch.int64)
        )
    names = [name for name in BATCH_MD5 if name != "test_batch"]
    train = Arrays(
        torch.cat([parts[name].images for name in names]),
        torch.cat([parts[name].labels for name in names]),
    )
    return ImageData(train, parts["test_batch"], CLASSES, "cifar10", str(path))


# A folder of images


def load_folder(path: Path, say: Callable[[str], None]) -> ImageData:
    """train/<class>/* and test/<class>/*, any size, decoded once and kept in a cache."""
    if not (path / "test").is_dir():
        raise DataError(
            f"{path} has train/ but no test/: put images that the training must not see into"
            f" {path / 'test'}/<class>/"
        )
    classes = _class_names(path / "train")
    if extra := sorted(set(_class_names(path / "test")) - set(classes)):
        raise DataError(
            f"{path / 'test'} has classes that train/ lacks, {', '.join(extra[:5])}: add images of"
            " them there, or remove them"
        )
    if len(classes) < 2:
        there = ", ".join(classes) or "none"
        raise DataError(
            f"{path / 'train'} needs two classes or more, and has {there}: put each class's images"
            " into a folder of its own"
        )
    files = {
        part: [
            (file, number)
            for number, name in enumerate(classes)
            for file in _image_files(path / part / name)
        ]
        for part in ("train", "test")
    }
    empty = [
        name
        for number, name in enumerate(classes)
        if not any(label == number for _, label in files["train"])
    ]
    if empty:
        raise DataError(
            f"no image in {path / 'train' / empty[0]}: fill the folder or remove it"
            + _more(empty[1:])
        )
    if not files["test"]:
        raise DataError(
            f"no image in {path / 'test'}: put some into {path / 'test'}/<class>/, the accuracy is"
            " measured on them"
        )
    key = _listing_hash(path, files["train"] + files["test"])
    cached = _read_cache(path, key)
    if cached is None:
        total = len(files["train"]) + len(files["test"])
        say(f"decoding {total} images of {path}")
        train, test = (decode(files[part], say) for part in ("train", "test"))
        cached = ImageData(train, test, tuple(classes), "folder", str(path))
        cached = dataclasses.replace(cached, sha256=hash_images(cached))
        _write_cache(path, key, cached)
    return cached


def _more(names: Sequence[str]) -> str:
    return f" (the same for {', '.join(names[:5])})" if names else ""


def _class_names(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )


def _listing_hash(path: Path, files: Sequence[tuple[Path, int]]) -> str:
    digest = hashlib.sha256(b"1\0")
    for file, label in files:
        status = file.stat()
        digest.update(
            f"{file.relative_to(path)}\0{label}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(
                "utf-8", "surrogateescape"
            )
        )
    return digest.hexdigest()[:32]


def decode(files: Sequence[tuple[Path, int]], say: Callable[[str], None]) -> Arrays:
    """Decode, convert to RGB and bring to 32×32. Raises DataError naming the first file that is no
    image."""
    from PIL import Image, ImageOps

    modes: list[str] = []  # appending is safe from threads, counting would not be

    def one(file: Path) -> np.ndarray[Any, Any]:
        try:
            with Image.open(file) as image:
                if image.mode != "RGB":
                    modes.append(image.mode)
                turned = ImageOps.exif_transpose(image)
                if turned.mode.startswith(
                    "I"
                ):  # 16 bits of grey, which convert() would clip to white
                    turned = Image.fromarray(
                        (np.asarray(turned) >> 8).clip(0, 255).astype(np.uint8)
                    )
                turned = turned.convert(
                    "RGBA" if "A" in turned.mode or "transparency" in turned.info else "RGB"
                )
                if turned.mode == "RGBA":
                    ground = Image.new("RGBA", turned.size, (255, 255, 255, 255))
                    turned = Image.alpha_composite(ground, turned).convert("RGB")
                if turned.size != (SIZE, SIZE):
                    turned = ImageOps.fit(turned, (SIZE, SIZE), Image.Resampling.BICUBIC)
                return np.asarray(turned, dtype=np.uint8).transpose(2, 0, 1)
        except Exception as error:  # each format's decoder has its own kinds for a damaged file
            raise DataError(
                f"{file} is no image that can be read ({' '.join(str(error).split())[:100]}):"
                " remove or replace it"
            ) from None

    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        images = np.stack(list(pool.map(one, [file for file, _ in files])))
    for mode, count in sorted(collections.Counter(modes).items()):
        name = {
            "L": "grey",
            "RGBA": "RGBA",
            "P": "palette",
            "1": "black-and-white",
            "LA": "grey with transparency",
        }.get(mode, mode)
        say(f"{count} {name} images were converted to RGB")
    return Arrays(
        torch.from_numpy(images), torch.tensor([label for _, label in files], dtype=torch.int64)
    )


def _cache_places(path: Path, key: str) -> list[Path]:
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return [path / ".decoded" / f"{key}.npz", home / "trainer-images" / f"{key}.npz"]


def _read_cache(path: Path, key: str) -> ImageData | None:
    for place in _cache_places(path, key):
        try:
            with np.load(place, allow_pickle=False) as file:
                arrays = [
                    Arrays(
                        torch.from_numpy(file[f"{p}_images"]), torch.from_numpy(file[f"{p}_labels"])
                    )
                    for p in ("train", "test")
                ]
                about = json.loads(str(file["about"]))
            return ImageData(
                arrays[0],
                arrays[1],
                tuple(about["classes"]),
                "folder",
                str(path),
                str(about["sha256"]),
            )
        except Exception:  # none there, or a damaged one: then the images are decoded again
            continue
    return None


def _write_cache(path: Path, key: str, data: ImageData) -> None:
    """A place that can't be written costs a decoding next time, and nothing else."""
    about = json.dumps({"classes": data.classes, "sha256": data.sha256})
    content: dict[str, Any] = {
        "train_images": data.train.images.numpy(),
        "train_labels": data.train.labels.numpy(),
        "test_images": data.test.images.numpy(),
        "test_labels": data.test.labels.numpy(),
    }
    for place in _cache_places(path, key):
        temporary = place.with_name(f"{place.name}.{secrets.token_hex(4)}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.savez(file, about=np.array(about), **content)
            os.replace(temporary, place)
            return
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()


# Made-up images


def make_synthetic(train: int = 12_000, test: int = 2_000, classes: int = 10) -> ImageData:
    """Labelled images in CIFAR-10's shape: gratings whose slope and frequency tell the class, with
    random colours, place and noise.

    A mirrored image is of the same class, as in photographs.
    """
    parts = [_gratings(count, classes, seed) for count, seed in ((train, 1), (test, 2))]
    return ImageData(
        parts[0],
        parts[1],
        tuple(f"pattern {number}" for number in range(classes)),
        "synthetic",
        "synthetic",
    )


def _gratings(count: int, classes: int, seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    random.shuffle(labels)
    ys, xs = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    angle = (
        (np.pi / 8 * (labels % 5) + random.normal(0, 0.10, count)) * random.choice((-1, 1), count)
    )[:, None, None]
    frequency = (np.where(labels < classes / 2, 2.5, 5.0) * np.exp(random.normal(0, 0.12, count)))[
        :, None, None
    ]
    phase = random.uniform(0, 2 * np.pi, count)[:, None, None]
    wave = np.sin(2 * np.pi * frequency * (xs * np.cos(angle) + ys * np.sin(angle)) + phase)
    centre = random.uniform(0.25, 0.75, (count, 2, 1, 1))
    window = np.exp(-((xs - centre[:, 0]) ** 2 + (ys - centre[:, 1]) ** 2) / 0.12)
    colour, ground = random.uniform(-0.5, 0.5, (2, count, 3, 1, 1))
    image = (
        0.5
        + 0.3 * ground
        + (wave * window)[:, None] * colour
        + random.normal(0, 0.12, (count, 3, SIZE, SIZE))
    )
    pixels = (255 * image.clip(0, 1)).astype(np.uint8)
    return Arrays(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))
