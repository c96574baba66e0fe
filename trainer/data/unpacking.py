"""A zip or tar of images, unpacked once beside it or in the user's cache."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from trainer.data.archive import DataError
from trainer.data.store import store_places


def unpack(archive: Path, say: Callable[[str], None]) -> Path:
    """The folder of what is in it. Raises DataError where it is damaged or no disk has room."""
    status = archive.stat()
    name = f"{archive.name}-{status.st_size}-{status.st_mtime_ns}"
    places = [place / name for place in store_places(archive.parent)]
    for place in places:
        if place.is_dir():
            return innermost(place)
    problem = "no place to unpack it to"
    for place in places:
        part = place.with_name(f"{name}.{secrets.token_hex(4)}.tmp")
        try:
            part.mkdir(parents=True)
            say(f"unpacking {archive} to {place}, once")
            unpack_to(archive, part)
            os.replace(part, place)
            return innermost(place)
        except OSError as error:
            if place.is_dir():  # another training was sooner
                return innermost(place)
            problem = str(error.strerror or error)
        except (tarfile.TarError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError) as error:
            raise DataError(
                f"{archive} can't be unpacked ({' '.join(str(error).split())[:100]}): bring it anew"
            ) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    raise DataError(f"{archive} can't be unpacked ({problem}): unpack it yourself, or free space")


def unpack_to(archive: Path, target: Path) -> None:
    """Nothing is written outside of `target`."""
    if not zipfile.is_zipfile(archive):
        if not hasattr(tarfile, "data_filter"):
            raise DataError(
                f"this python unpacks no tar safely: unpack {archive} yourself, or use 3.10.12 or"
                " newer"
            )
        with tarfile.open(archive) as packed:
            packed.extractall(target, filter="data")
        return
    with zipfile.ZipFile(archive) as packed:
        unmarked = [member for member in packed.infolist() if not member.flag_bits & 0x800]
        # Often in UTF-8 all the same, or in the code page of Chinese Windows.
        for encoding in ("utf-8", "gb18030"):
            with contextlib.suppress(UnicodeError):
                names = [member.filename.encode("cp437").decode(encoding) for member in unmarked]
                for member, name in zip(unmarked, names, strict=True):
                    member.filename = name
                break
        packed.extractall(target, packed.infolist())


def innermost(folder: Path) -> Path:
    """Archives often hold one folder that holds everything."""
    while True:
        entries = [
            entry
            for entry in folder.iterdir()
            if entry.name != "__MACOSX" and not entry.name.startswith(".")
        ]
        if len(entries) != 1 or not entries[0].is_dir():
            return folder
        folder = entries[0]
