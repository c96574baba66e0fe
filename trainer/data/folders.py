"""Images of one's own: from a listing to a training, a validation and a test set, with one line
for everything that a person should know of them."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.data.archive import DataError
from trainer.data.decode import FIT_SIZE, Form, header_sizes, usual_size
from trainer.data.images import Arrays, Files, FileSource, ImageData
from trainer.data.listing import Listing, listing_hashes
from trainer.data.splits import hold_out
from trainer.data.store import Findings, Set, decode_to_disk, decode_to_memory

Say = Callable[[str], None]
MEMORY_SHARE = 0.25
"""Images that are cut to their size once lie in memory where they take no more of it."""
TEST_FRACTION = 0.2
"""Of a set without a split."""
SHOWN = 5
MODES = {
    "L": "grey",
    "RGBA": "RGBA",
    "P": "palette",
    "1": "black-and-white",
    "LA": "grey with transparency",
    "12-bit": "of 12 bits in files of 16 (no value above 4095)",
    "16-bit": "of 16 bits",
    "animated": "of several frames or pages, whose first one alone is used",
}


@dataclass(frozen=True)
class Wanted:
    """image_size 0: as the images are, at most 224."""

    image_size: int = 0
    skip_damaged: bool = False


def load_listing(listing: Listing, say: Say, wanted: Wanted) -> ImageData:
    classes = check_classes(listing)
    listing = settle_splits(listing, say)
    paths = [os.path.join(listing.root, entry.path) for entry in listing.entries]
    size = size_to_keep(paths, wanted.image_size)
    lasting, here = listing_hashes(listing)
    images = Set(listing.root, paths, here[:32], Form(size))
    labels = torch.tensor([classes[entry.label] for entry in listing.entries])
    if fits_in_memory(images.form, len(paths)):
        pixels, findings = decode_to_memory(images, say)
        whole: Arrays | Files = Arrays(
            torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels
        )
    else:
        say(f"images of {size}×{size} pixels are cut from them; another size: --image_size")
        kept, findings = decode_to_disk(images, say)
        names = np.array([os.fsencode(entry.path) for entry in listing.entries])
        source = FileSource(str(listing.root), names, images.form, kept)
        whole = Files(source, torch.arange(len(labels)), labels)
    sound = leave_out_damaged(images, findings, say, wanted.skip_damaged)
    parts = places_of(listing, labels, sound, say)
    say_thin_classes(parts, labels, tuple(classes), say)
    return ImageData(
        whole.take(parts["train"]),
        whole.take(parts["test"]),
        tuple(classes),
        "table" if listing.table else "folder",
        str(listing.table or listing.root),
        "" if isinstance(whole, Arrays) else lasting,
        whole.take(parts["val"]) if len(parts["val"]) else None,
        tuple(listing.entries[place].path for place in sorted(findings.damaged)),
    )


def size_to_keep(paths: Sequence[str], wanted: int) -> int:
    """Small images that are wanted larger are enlarged when they are used, a batch at a time."""
    own = usual_size(paths)
    small = max((max(size) for size in header_sizes(paths)), default=own) <= FIT_SIZE
    return own if small and wanted > FIT_SIZE else wanted or own


def fits_in_memory(form: Form, count: int) -> bool:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return form.fit and 3 * form.size**2 * count < MEMORY_SHARE * memory


def check_classes(listing: Listing) -> Mapping[str, int]:
    """The classes' numbers, in the order of their names. Raises DataError where they can't be
    trained on."""
    root = listing.root
    there = {(entry.split, entry.label) for entry in listing.entries}
    splits = {split for split, _ in there | listing.classes}
    trained = "train" if "train" in splits else ""
    where = root / trained
    classes = sorted({label for split, label in there | listing.classes if split == trained})
    for split in ("test", "val"):
        if extra := sorted(
            {name for part, name in listing.classes | there if part == split} - {*classes}
        ):
            raise DataError(
                f"{root / split} has classes that train/ lacks, {', '.join(extra[:SHOWN])}: add"
                " images of them there, or remove them"
            )
    if len(classes) < 2:
        raise DataError(
            f"{where} needs two classes or more, and has {', '.join(classes) or 'none'}: put each"
            " class's images into a folder of its own"
        )
    if empty := [name for name in classes if (trained, name) not in there]:
        raise DataError(
            f"no image in {where / empty[0]}: fill the folder or remove it" + _more(empty[1:])
        )
    return {name: number for number, name in enumerate(classes)}


def settle_splits(listing: Listing, say: Say) -> Listing:
    """Every image in train, val or test, or none in any. Raises DataError."""
    root, counts = listing.root, collections.Counter(entry.split for entry in listing.entries)
    splits = {split for split, _ in listing.classes} | counts.keys()
    if splits == {"train"}:
        raise DataError(
            f"{root} has train/ but no test/: put images that the training must not see into"
            f" {root / 'test'}/<class>/"
        )
    if splits == {""}:
        return listing
    changes = {"": "train"}
    if "test" not in splits:
        say("there is no test set: the validation set is tested on, once, at the end")
        changes["val"] = "test"
    elif not counts["test"]:
        raise DataError(
            f"no image in {root / 'test'}: put some into {root / 'test'}/<class>/, the accuracy is"
            " measured on them"
        )
    entries = [
        entry._replace(split=changes.get(entry.split, entry.split)) for entry in listing.entries
    ]
    classes = frozenset((changes.get(split, split), name) for split, name in listing.classes)
    return dataclasses.replace(listing, entries=entries, classes=classes)


def places_of(listing: Listing, labels: Tensor, sound: Tensor, say: Say) -> Mapping[str, Tensor]:
    """The sound images' places by part: train, val, test."""
    parts = {
        name: torch.tensor(
            [place for place in sound.tolist() if listing.entries[place].split == name],
            dtype=torch.int64,
        )
        for name in ("", "train", "val", "test")
    }
    whole = parts.pop("")
    if len(whole):
        rest, held = hold_out(labels[whole], round(TEST_FRACTION * len(whole)))
        parts["train"], parts["test"] = (
            whole[torch.cat(some)].sort().values for some in (rest, held)
        )
        if not len(parts["test"]):
            raise DataError(
                f"{listing.root} has no test set, and one image of each class, of which none can be"
                " kept for the test: add images"
            )
        say(
            f"no split there: {len(parts['test'])} of {len(whole)} images are kept for the test,"
            " 20% of each class by a fixed seed"
        )
    return parts


def say_thin_classes(
    parts: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str], say: Say
) -> None:
    """Classes that can't be judged. Raises DataError where one can't be trained on at all."""
    train, test = (
        torch.bincount(labels[parts[name]], minlength=len(classes)).tolist()
        for name in ("train", "test")
    )

    def those(counts: Sequence[int], count: int) -> list[str]:
        return [name for name, found in zip(classes, counts, strict=True) if found == count]

    if lacking := those(train, 0):
        raise DataError(f"no sound image to train on is left of {lacking[0]!r}: add some")
    if not sum(test):
        raise DataError("no sound image is left to test on: add some")
    if thin := those(train, 1):
        say(f"{thin[0]!r} has a single image to train on{_more(thin[1:])}")
    if thin := those(test, 0):
        say(f"{thin[0]!r} has no image to test on, its accuracy stays unknown{_more(thin[1:])}")


def leave_out_damaged(images: Set, findings: Findings, say: Say, skip: bool) -> Tensor:
    """Places of the sound images. Raises DataError that names the damaged ones where they are not
    to be skipped."""
    damaged = sorted(findings.damaged)
    for mode, count in findings.modes.items():
        say(f"images converted to RGB: {count} {MODES.get(mode, mode)}")
    if damaged and not skip:
        first, others = images.paths[damaged[0]], damaged[1 : SHOWN + 1]
        names = ", ".join(os.path.relpath(images.paths[place], images.root) for place in others)
        more = f"; so are {len(damaged) - 1} others: {names}" if others else ""
        raise DataError(
            f"{first} is no image that can be read ({findings.damaged[damaged[0]]}){more}: remove"
            " or replace it, or leave out what is damaged with --skip_damaged"
        )
    if damaged:
        say(f"{len(damaged)} damaged files are left out:")
    for place in damaged:
        say(f"  {images.paths[place]}: {findings.damaged[place]}")
    sound = torch.ones(len(images.paths), dtype=torch.bool)
    sound[damaged] = False
    return sound.nonzero()[:, 0]


def _more(names: Sequence[str]) -> str:
    return f" (the same for {', '.join(names[:SHOWN])})" if names else ""
