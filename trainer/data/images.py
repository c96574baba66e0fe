"""Images and their labels: in memory, or read from their files as they are needed."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from trainer.config import TrainConfig
from trainer.data.augment import mirrored
from trainer.data.decode import Form, decode
from trainer.data.store import Pixels


@dataclass(frozen=True)
class Arrays:
    """images: uint8 [N, 3, side, side]; labels: int64 [N]. `form`: to what size they are brought
    when they are used; None: none but their own."""

    images: Tensor
    labels: Tensor
    form: Form | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        return self.form.size if self.form else self.images.shape[-1]

    def take(self, indices: Tensor) -> Arrays:
        return Arrays(self.images[indices], self.labels[indices], self.form)

    def batch(self, indices: Tensor) -> Tensor:
        """As evaluated: uint8 [B, 3, size, size]."""
        images = self.images[indices]
        return evaluation_crop(images, self.form) if self.form else images


@dataclass(frozen=True)
class FileSource:
    """The files of a set: where they lie, and what is kept of them decoded (None: nothing)."""

    root: str
    # As bytes: a list of so many texts would be copied into every worker process, page by page.
    names: NDArray[np.bytes_]
    form: Form
    pixels: Pixels | None = None

    def path(self, place: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[place]))

    def read(self, place: int) -> Tensor:
        """uint8 [3, height, width]: the image as it is kept, whether or not there is a store."""
        if self.pixels is not None:
            pixels = self.pixels.read(place)
        else:
            pixels = decode(self.path(place), self.form)[0]
        return torch.from_numpy(pixels).permute(2, 0, 1)


@dataclass(frozen=True)
class Files:
    """Images that are read as they are needed. `places`: int64 [N], into the source; labels: int64
    [N]."""

    source: FileSource
    places: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        return self.source.form.size

    def take(self, indices: Tensor) -> Files:
        return Files(self.source, self.places[indices], self.labels[indices])

    def batch(self, indices: Tensor) -> Tensor:
        """As evaluated: uint8 [B, 3, size, size]."""
        images = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8)
        for number, place in enumerate(self.places[indices].tolist()):
            images[number] = evaluation_crop(self.source.read(place), self.source.form)
        return images

    def crops(self, indices: Tensor, epoch: int, config: TrainConfig) -> Tensor:
        """A random part of each image, mirrored or not: uint8 [B, 3, size, size]. What happens to
        it follows from seed, epoch and index alone."""
        crop = v2.RandomResizedCrop(self.size, scale=(config.crop_scale, 1.0), antialias=True)
        images = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8)
        flips = mirrored(indices, epoch, config).tolist()
        with torch.random.fork_rng(devices=[]):
            for number, index in enumerate(indices.tolist()):
                place = int(self.places[index])
                draw = np.random.SeedSequence([config.seed, epoch, index, 55])
                torch.default_generator.manual_seed(int(draw.generate_state(1, np.uint64)[0]))
                image = crop(self.source.read(place))
                images[number] = image.flip(-1) if flips[number] else image
        return images


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """float [classes]: every class weighs as much as another, and an image 1 in the mean."""
    counts = torch.bincount(labels, minlength=classes)
    return len(labels) / (len(counts) * counts.clamp(min=1)).float()


def evaluation_crop(image: Tensor, form: Form) -> Tensor:
    """As evaluated, uint8 [3, size, size]: the middle of the image, whose shorter side is 1/0.875
    of the crop's (256 of 224). An image that must be enlarged loses nothing at its shorter side."""
    enlarged = min(image.shape[-2:]) < form.size
    image = v2.functional.resize(
        image, [form.size if enlarged or form.fit else form.shorter], antialias=True
    )
    cut: Tensor = v2.functional.center_crop(image, [form.size, form.size])
    return cut


def read_evaluated(path: str, form: Form) -> Tensor:
    """One file as evaluated, uint8 [3, size, size]. Raises what its format's decoder raises."""
    return evaluation_crop(torch.from_numpy(decode(path, form)[0]).permute(2, 0, 1), form)


@dataclass(frozen=True)
class ImageData:
    """All images of a training. `kind`: cifar10, folder, table or synthetic. `sha256` is over
    pixels and labels, of images that are read as needed over names, sizes and labels. `validation`:
    where the set brings one of its own. `damaged`: files that were left out."""

    train: Arrays | Files
    test: Arrays | Files
    classes: tuple[str, ...]
    kind: str
    path: str
    sha256: str = ""
    validation: Arrays | Files | None = None
    damaged: tuple[str, ...] = ()

    def brought_to(self, size: int) -> ImageData:
        """The same images in memory, used at another size."""
        parts = (self.train, self.test, self.validation)
        train, test, validation = (
            dataclasses.replace(part, form=Form(size)) if isinstance(part, Arrays) else part
            for part in parts
        )
        assert train is not None and test is not None
        return dataclasses.replace(self, train=train, test=test, validation=validation)

    @property
    def image_size(self) -> int:
        return self.train.size
