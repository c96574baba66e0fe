"""CIFAR-10's archive: what it must be, and its download. Imports no torch: whoever sends the
archive to a server checks it, too."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

ARCHIVE = "cifar-10-python.tar.gz"
BATCHES = "cifar-10-batches-py"
"""The folder in it."""
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_BYTES = 170_498_071
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
DOWNLOAD_TIMEOUT_S = 30.0
RETRY_PAUSE_S = 1.0
"""After the first broken download; doubled after each further one, up to ten times as long."""
REMEDY = f"bring {ARCHIVE} (md5 {ARCHIVE_MD5}) to this machine and give its path as --data"


class DataError(Exception):
    """The images can't be had; one line that says what to do."""


def check_archive(path: Path) -> None:
    """Raises DataError that tells a page, a truncated file and a damaged one apart."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
        if is_web_page(head):
            raise DataError(f"{path} is a web page, not the CIFAR-10 archive; {REMEDY}")
        if not head.startswith(b"\x1f\x8b"):
            raise DataError(f"{path} is not a .tar.gz archive; {REMEDY}")
        if size < ARCHIVE_BYTES:
            raise DataError(f"{path} is truncated: {size:,} of {ARCHIVE_BYTES:,} bytes; {REMEDY}")
        file.seek(0)
        digest = hashlib.md5(usedforsecurity=False)
        while data := file.read(1 << 20):
            digest.update(data)
    if digest.hexdigest() != ARCHIVE_MD5:
        raise DataError(f"{path} is damaged: its md5 is {digest.hexdigest()}; {REMEDY}")


def download_archive(
    target: Path, say: Callable[[str], None], url: str = "", tries: int = 5
) -> None:
    """Into `target`, which appears when its md5 is right; goes on where a broken download stopped.
    Raises DataError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(target.name + ".lock")
    with one_at_a_time(lock, say):
        if not target.exists():
            _download(target, say, url or os.environ.get("CIFAR10_URL", ARCHIVE_URL), tries)
        lock.unlink(missing_ok=True)  # whoever waits for it finds the archive


@contextlib.contextmanager
def one_at_a_time(lock: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Of the trainings that want it there: what two append to one part is neither's. Windows has no
    such lock, and some network disks have none."""
    with open(lock, "ab") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another training downloads CIFAR-10: waiting for that")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(target: Path, say: Callable[[str], None], url: str, tries: int) -> None:
    part = target.with_name(target.name + ".part")
    say(f"downloading CIFAR-10 (170 MB) from {url} to {target}")
    problem, damaged = "", 0
    for number in range(tries):
        if number:
            say(f"the download broke off ({problem}); trying again")
            time.sleep(RETRY_PAUSE_S * min(2.0 ** (number - 1), 10.0))
        try:
            _download_some(url, part, say)
            check_archive(part)
        except DataError as error:
            # Not resumed but begun anew, and only once: a part left by an earlier version may be to
            # blame, or the server.
            part.unlink(missing_ok=True)
            problem = str(error).split(";")[0].replace(str(part), "what came")
            damaged += 1
            if damaged > 1 or "web page" in problem:
                break
        except (http.client.HTTPException, OSError, ValueError) as error:
            problem = (
                " ".join(str(getattr(error, "reason", None) or error).split())
                or type(error).__name__
            )
            code = error.code if isinstance(error, urllib.error.HTTPError) else 0
            if code in (403, 404):
                break
            if code == 416:  # it has less than we do
                part.unlink(missing_ok=True)
        else:
            os.replace(part, target)
            return
    raise DataError(f"CIFAR-10 can't be downloaded from {url}: {problem}; {REMEDY}")


def _download_some(url: str, part: Path, say: Callable[[str], None]) -> None:
    """Append what is missing of `part`. Raises DataError for a web page, OSError for a connection
    that ended early."""
    have = part.stat().st_size if part.exists() else 0
    if have >= ARCHIVE_BYTES:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_S) as answer:
        if have and answer.status != 206:
            have = 0
        told = time.monotonic()
        with open(part, "ab" if have else "wb") as file:
            while data := answer.read(1 << 18):
                file.write(data)
                have += len(data)
                if have > 2 * ARCHIVE_BYTES:
                    raise DataError("more than the archive")
                if time.monotonic() - told > 5:
                    told = time.monotonic()
                    say(f"  {have / 1e6:.0f} of {ARCHIVE_BYTES / 1e6:.0f} MB")
    if have < ARCHIVE_BYTES:
        with open(part, "rb") as file:
            if is_web_page(file.read(512)):
                raise DataError("what came is a web page")
        raise OSError(f"it ended after {have:,} bytes")


def is_web_page(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
