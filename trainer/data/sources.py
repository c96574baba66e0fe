"""Where images come from: CIFAR-10 as an archive, unpacked or downloaded; images of one's own; or
made up."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from trainer.config import TrainConfig
from trainer.data.archive import ARCHIVE, BATCHES, REMEDY, DataError, download_archive
from trainer.data.cifar10 import load_archive, load_batches
from trainer.data.folders import Wanted, load_listing
from trainer.data.images import Arrays, ImageData
from trainer.data.listing import NEITHER, archive_of, list_images
from trainer.data.synthetic import make_synthetic
from trainer.data.unpacking import unpack

Say = Callable[[str], None]
OWN_FOLDER = "cifar10"
"""What a folder is called that is made for the download; another one that is missing was
mistyped."""


def load_images(
    data: str,
    say: Say = print,
    download: bool = True,
    image_size: int = 0,
    skip_damaged: bool = False,
) -> ImageData:
    """Raises DataError. `say` takes what a person should know. `image_size` 0: as large as the
    images are, at most 224."""
    wanted = Wanted(image_size, skip_damaged)
    if data == "synthetic":
        found = make_synthetic()
    else:
        try:
            found = _load_path(Path(os.path.expanduser(data)), say, download, wanted)
        except OSError as error:
            place = error.filename or data
            raise DataError(
                f"{place} can't be read ({error.strerror or error}): give this user access, or name"
                " another --data"
            ) from None
    found = found if found.sha256 else dataclasses.replace(found, sha256=hash_images(found))
    return found if image_size in (0, found.image_size) else found.brought_to(image_size)


def _load_path(path: Path, say: Say, download: bool, wanted: Wanted) -> ImageData:
    if path.is_file() and path.suffix.lower() != ".csv":
        if archive_of(path):
            return _load_own(unpack(path, say), say, wanted)
        return load_archive(path)
    for place in (path / BATCHES, path):
        if (place / "test_batch").exists():
            return load_batches(place)
    archive = path / ARCHIVE
    if archive.exists():
        return load_archive(archive)
    if packed := archive_of(path):
        return _load_path(packed, say, download, wanted)
    # A download that broke off leaves its part, which is gone on with.
    if path.is_file() or (
        path.is_dir()
        and any(entry for entry in path.iterdir() if not entry.name.startswith((".", ARCHIVE)))
    ):
        return _load_own(path, say, wanted)
    if not download:
        raise DataError(f"there are no images at {path}; {REMEDY}")
    if not path.is_dir() and path != Path(TrainConfig.data) and path.name != OWN_FOLDER:
        raise DataError(
            f"no such file or folder: {path}; CIFAR-10 is downloaded into an empty folder, or a new"
            f" one that is called {OWN_FOLDER}"
        )
    download_archive(archive, say)
    return load_archive(archive)


def _load_own(path: Path, say: Say, wanted: Wanted) -> ImageData:
    listing = list_images(path, say)
    if listing is None:
        raise DataError(
            f"{path} {NEITHER}; name a folder that does, or an empty one for a download"
        )
    return load_listing(listing, say, wanted)


def hash_images(data: ImageData) -> str:
    digest = hashlib.sha256()
    for part in (data.train, data.test, data.validation):
        if isinstance(part, Arrays):
            digest.update(part.images.numpy().tobytes())
            digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()
