"""Decoded images on the disk, so that each file is decoded once."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.decode import Form, cores, decode, header_sizes, reason

Say = Callable[[str], None]
Keep = Callable[[int, NDArray[np.uint8]], None]
TELL_EVERY_S = 10.0
CHUNK = 250
"""So many decoded images wait in memory at most."""
LEFT_AFTER_S = 3600.0
ROOM_SHARE = 0.5
"""Of a disk's free space, at most so much is taken."""


@dataclass(frozen=True)
class Set:
    """Files to decode. `key` changes with any of them."""

    root: Path
    paths: Sequence[str]
    key: str
    form: Form

    @property
    def name(self) -> str:
        return f"{self.key}-{self.form.size}{'' if self.form.fit else '-whole'}"


@dataclass
class Findings:
    """What decoding has found: the reason for each damaged file, by its place, and how many images
    were of which mode."""

    damaged: dict[int, str] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Pixels:
    """Images one after another in a file, each uint8 [height, width, 3]."""

    file: Path
    starts: NDArray[np.int64]
    shapes: NDArray[np.int32]

    def read(self, place: int) -> NDArray[np.uint8]:
        # Read, not mapped: what was mapped would have to be opened anew in every worker process.
        height, width = map(int, self.shapes[place])
        start = int(self.starts[place])
        pixels = np.fromfile(self.file, np.uint8, 3 * height * width, offset=start)
        return pixels.reshape(height, width, 3)


def decode_to_memory(images: Set, say: Say) -> tuple[NDArray[np.uint8], Findings]:
    """uint8 [N, size, size, 3]; zeros in place of a damaged file."""
    for place in store_places(images.root):
        if (found := read_index(place / f"{images.name}.npz")) is not None:
            return found[0]["images"], found[1]
    say(f"decoding {len(images.paths)} images of {images.root}")
    size = images.form.size
    pixels = np.zeros((len(images.paths), size, size, 3), np.uint8)
    findings = decode_each(images, pixels.__setitem__, say)
    for place in store_places(images.root):
        # A place that can't be written costs a decoding next time, and nothing else.
        with contextlib.suppress(OSError):
            write_index(place / f"{images.name}.npz", findings, images=pixels)
            break
    return pixels, findings


def decode_to_disk(images: Set, say: Say) -> tuple[Pixels | None, Findings]:
    """None where no disk has room: then every file is decoded once to see that it is sound, and
    again whenever it is needed."""
    places = store_places(images.root)
    for place in places:
        file, found = place / f"{images.name}.bin", read_index(place / f"{images.name}.npz")
        if found is not None:
            starts, shapes = found[0]["starts"], found[0]["shapes"]
            if not len(starts):
                return None, found[1]
            if file.exists() and file.stat().st_size == 3 * int(shapes.prod(1).sum()):
                return Pixels(file, starts, shapes), found[1]
    needed = bytes_needed(images)
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if needed < ROOM_SHARE * shutil.disk_usage(place).free:
                say(
                    f"decoding {len(images.paths)} images of {images.root}, once;"
                    f" {needed / 1e9:.1f} GB are kept in {place}"
                )
                return write_pixels(place / images.name, images, say)
    say(
        f"checking {len(images.paths)} images of {images.root}; no disk has room to keep"
        f" {needed / 1e9:.1f} GB of them decoded, every epoch decodes them again"
    )
    findings = decode_each(images, lambda place, image: None, say)
    none: NDArray[np.int64] = np.zeros(0, np.int64)
    for place in places:
        with contextlib.suppress(OSError):
            write_index(place / f"{images.name}.npz", findings, starts=none, shapes=none)
            break
    return None, findings


def write_pixels(base: Path, images: Set, say: Say) -> tuple[Pixels, Findings]:
    """The index comes last: without one the pixels count for nothing."""
    starts = np.zeros(len(images.paths), np.int64)
    shapes = np.zeros((len(images.paths), 2), np.int32)
    end, file = 0, base.with_name(f"{base.name}.bin")
    # Another training that decodes the same images at the same time writes a file of its own, which
    # is the same: whichever comes last suits both indexes.
    part = base.with_name(f"{base.name}.{secrets.token_hex(4)}.tmp")
    remove_left_parts(base)
    try:
        with open(part, "wb") as target:

            def keep(place: int, image: NDArray[np.uint8]) -> None:
                nonlocal end
                starts[place], end = end, end + image.nbytes
                shapes[place] = image.shape[:2]
                target.write(image.data)

            findings = decode_each(images, keep, say)
            target.flush()
            os.fsync(target.fileno())  # a power cut must not leave zeros under a good index
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    write_index(base.with_name(f"{base.name}.npz"), findings, starts=starts, shapes=shapes)
    return Pixels(file, starts, shapes), findings


def remove_left_parts(base: Path) -> None:
    """Of a training that was killed while it decoded: nobody has written to them for long."""
    for part in base.parent.glob(f"{base.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > LEFT_AFTER_S:
                part.unlink()


def decode_each(images: Set, keep: Keep, say: Say) -> Findings:
    """In threads: Pillow's decoders run side by side. Kept in order, told now and then; memory
    stays bounded."""
    findings, modes = Findings(), list[str]()  # appending is safe from threads, counting is not

    def one(place: int) -> NDArray[np.uint8] | None:
        try:
            pixels, mode = decode(images.paths[place], images.form)
        except Exception as error:  # each format's decoder has its own kinds for a damaged file
            findings.damaged[place] = reason(error, images.paths[place])
            return None
        if mode != "RGB":
            modes.append(mode)
        return pixels

    told, count = time.monotonic(), len(images.paths)
    with ThreadPoolExecutor(max(2, cores())) as pool:
        for first in range(0, count, CHUNK):
            chunk = range(first, min(first + CHUNK, count))
            for place, pixels in zip(chunk, pool.map(one, chunk), strict=True):
                if pixels is not None:
                    keep(place, pixels)
            if time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                say(f"  {min(first + CHUNK, count)} of {count}")
    findings.modes = dict(sorted(collections.Counter(modes).items()))
    return findings


def bytes_needed(images: Set) -> int:
    """What the images take decoded, told from the headers of some."""
    sizes = header_sizes(images.paths)
    if images.form.fit:
        return 3 * images.form.size**2 * len(images.paths)
    kept = [
        3 * width * height / max(1, min(width, height) // images.form.shorter) ** 2
        for width, height in sizes
    ]
    return int(len(images.paths) * sum(kept) / max(1, len(kept)))


def store_places(root: Path) -> list[Path]:
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return [root / ".decoded", home / "trainer-images"]


def read_index(path: Path) -> tuple[dict[str, Any], Findings] | None:
    """None where there is none, or a damaged one: then the images are decoded again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            damaged = {int(place): str(text) for place, text in about["damaged"].items()}
            arrays = {name: file[name] for name in file.files if name != "about"}
            return arrays, Findings(damaged, about["modes"])
    except Exception:  # a damaged file makes numpy, zipfile and json raise many kinds
        return None


def write_index(path: Path, findings: Findings, **arrays: NDArray[Any]) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez(file, about=np.array(json.dumps(asdict(findings))), **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
