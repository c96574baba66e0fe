"""What a folder, a CSV file or an archive says of its images: path, class and split. No image is
opened here, and nothing but the standard library imported: whoever sends images to a server checks
them, too."""

from __future__ import annotations

import collections
import contextlib
import csv
import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from trainer.data.archive import ARCHIVE, BATCHES, DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
NEITHER = (
    "holds neither CIFAR-10 nor train/<class>/* and test/<class>/*, <class>/* or a CSV of"
    " path,label"
)
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""A folder's name, or a CSV cell's, and what it stands for."""
JUNK = ("__MACOSX", ".ipynb_checkpoints", "Thumbs.db", ".DS_Store", "desktop.ini")
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path", "filepath"),
    "label": ("label", "class", "class_name", "target", "category"),
    "split": ("split", "set", "subset", "fold"),
}
SHOWN = 5


class Entry(NamedTuple):
    """One image: its path below the root, its class, and its split, `` where none is given."""

    path: str
    label: str
    split: str


@dataclass(frozen=True)
class Listing:
    root: Path
    entries: Sequence[Entry]
    # Every class that has a folder, with images or without; a split's class folders.
    classes: frozenset[tuple[str, str]] = frozenset()
    # The CSV that says so.
    table: Path | None = None


def archive_of(path: Path) -> Path | None:
    """A zip or tar of images: the file itself, or the only one in a folder. None for CIFAR-10's."""
    if path.is_dir():
        entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        if len(entries) != 1:
            return None
        path = entries[0]
    name = path.name.lower()
    if not path.is_file() or name == ARCHIVE:
        return None
    if name.endswith(TARS):
        with contextlib.suppress(tarfile.TarError, EOFError, OSError), tarfile.open(path) as file:
            first = file.next()
            return path if first is None or first.name.split("/")[0] != BATCHES else None
    return path if name.endswith(".zip") else None


def holds_images(path: Path) -> bool:
    """In any of the forms that a training takes. Raises DataError for a table that is wrong."""
    return archive_of(path) is not None or list_images(path, lambda text: None) is not None


def list_images(path: Path, say: Callable[[str], None]) -> Listing | None:
    """None where the folder holds no images in any of the forms. Raises DataError."""
    ignored: collections.Counter[str] = collections.Counter()
    if path.is_file():
        listing = list_csv(path)
    elif (path / "train").is_dir():
        listing = list_splits(path, ignored)
    elif (table := csv_of(path)) is not None:
        listing = list_csv(table)
    else:
        listing = list_classes(path, "", ignored)
        if not listing.entries:
            return None
    if ignored:
        what = ", ".join(f"{name} ({count})" for name, count in ignored.most_common(SHOWN))
        say(f"ignored files that are no images of the set ({ignored.total()}): {what}")
    return listing


def list_splits(path: Path, ignored: collections.Counter[str]) -> Listing:
    """train/<class>/*, and test/ or val/ or both beside it."""
    parts = [
        list_classes(path / name, split, ignored)
        for name, split in SPLITS.items()
        if (path / name).is_dir()
    ]
    entries = [
        entry._replace(path=f"{part.root.name}/{entry.path}")
        for part in parts
        for entry in part.entries
    ]
    return Listing(path, entries, frozenset().union(*(part.classes for part in parts)))


def list_classes(path: Path, split: str, ignored: collections.Counter[str]) -> Listing:
    """<class>/*, at any depth below the class."""
    entries, classes = [], set()
    for folder in sorted(entry.name for entry in os.scandir(path) if entry.is_dir()):
        if is_junk(folder):
            ignored[folder] += sum(len(files) for _, _, files in os.walk(path / folder))
            continue
        if folder.startswith("."):
            continue
        classes.add((split, folder))
        entries += [Entry(name, folder, split) for name in walk(str(path), folder, ignored)]
    return Listing(path, entries, frozenset(classes))


def walk(root: str, folder: str, ignored: collections.Counter[str]) -> Iterable[str]:
    """Paths of the images, relative to root, in order."""
    found = []
    for place, folders, files in os.walk(os.path.join(root, folder)):
        for name in [name for name in folders if is_junk(name) or name.startswith(".")]:
            folders.remove(name)
            if is_junk(name):
                ignored[name] += sum(
                    len(below) for _, _, below in os.walk(os.path.join(place, name))
                )
        relative = os.path.relpath(place, root)
        for name in files:
            if is_junk(name) or name.startswith("."):
                ignored[name if is_junk(name) else "hidden"] += 1
            elif name.lower().endswith(SUFFIXES):
                found.append(f"{relative}/{name}")
            else:
                ignored[os.path.splitext(name)[1].lower() or name] += 1
    return sorted(found, key=lambda name: name.split("/"))


def is_junk(name: str) -> bool:
    return name in JUNK


def csv_of(path: Path) -> Path | None:
    """The folder's table of images, where it has exactly one CSV file."""
    tables = [name for name in path.glob("*.csv") if not name.name.startswith(".")]
    return tables[0] if len(tables) == 1 else None


def list_csv(table: Path) -> Listing:
    """A CSV of path,label[,split], with or without a first line that names the columns; paths are
    relative to it. Raises DataError that names the line."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is no CSV in UTF-8 ({error}): save it as one") from None
    columns = {"path": 0, "label": 1, "split": 2}
    first = [cell.strip().lower() for cell in rows[0][1]] if rows else [""]
    if not first[0].endswith(SUFFIXES):
        columns = {
            name: next((first.index(known) for known in names if known in first), len(first))
            for name, names in COLUMNS.items()
        }
        if len(first) in (columns["path"], columns["label"]):
            raise DataError(f"{table} needs the columns path,label[,split] in its first line")
        rows = rows[1:]
    entries = {number: table_entry(table, number, row, columns) for number, row in rows}
    check_repetitions(table, entries)
    return Listing(table.parent, [*entries.values()], table=table)


def check_repetitions(table: Path, entries: Mapping[int, Entry]) -> None:
    """An image may stand there twice where that only makes it count twice in the training. Raises
    DataError."""
    first: dict[str, int] = {}
    for number, entry in entries.items():
        before = first.setdefault(os.path.normpath(entry.path), number)
        if before != number and (entry.split != "train" or entry[1:] != entries[before][1:]):
            raise DataError(
                f"lines {before} and {number} of {table} name the same image, {entry.path}: remove"
                " one of them"
            )


def table_entry(table: Path, number: int, row: list[str], columns: Mapping[str, int]) -> Entry:
    cells = {
        name: row[place].strip() if place < len(row) else "" for name, place in columns.items()
    }
    path, label, split = cells["path"], cells["label"], cells["split"].lower()
    where = f"line {number} of {table}"
    if not (path and label):
        raise DataError(f"{where} has no {'label' if path else 'path'}: add it or remove the line")
    if split and split not in SPLITS:
        raise DataError(f"{where} has the split {split!r}: it must be train, val or test")
    if not (table.parent / path).is_file():
        raise DataError(f"{where} names {path}, which isn't there: correct or remove the line")
    return Entry(path, label, SPLITS.get(split, ""))


def listing_hashes(listing: Listing) -> tuple[str, str]:
    """Over paths, classes, splits and sizes; and over the files' times too, which change with every
    copy."""
    # `here` has another number once decode() gives other pixels.
    lasting, here = hashlib.sha256(b"2\0"), hashlib.sha256(b"3\0")
    for entry in listing.entries:
        status = os.stat(os.path.join(listing.root, entry.path))
        text = "\0".join((*entry, str(status.st_size))).encode("utf-8", "surrogateescape")
        lasting.update(text)
        here.update(text + b"\0%d" % status.st_mtime_ns)
    return lasting.hexdigest(), here.hexdigest()
