"""CIFAR-10 as its official archive has it, packed or unpacked."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import torch

from trainer.data.archive import REMEDY, DataError, check_archive
from trainer.data.images import Arrays, ImageData

SIZE = 32
"""Pixels per side."""
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
