"""What both ends must agree on about a release. Imports on every system, unlike the rest of the
agent."""

import hashlib
from typing import Iterable, Tuple

SYMLINK = 0o120000
"""The mode of a symbolic link; its content is its target."""

Entry = Tuple[str, int, int, str]
"""Path with `/`, mode, size in bytes, sha256 of the content in hex."""


def tree_hash(entries: Iterable[Entry]) -> str:
    """Over mode, size, content and path of every file, in the order given; the same on both
    ends."""
    digest = hashlib.sha256()
    for path, mode, size, sha256 in entries:
        digest.update(
            f"{mode:o} {size} {sha256} ".encode() + path.encode("utf-8", "surrogateescape") + b"\0"
        )
    return digest.hexdigest()[:40]
