"""Contents on their way to the server, with the progress shown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote.link.session import Session
from remote.project.release import upload_frames
from remote.records import FileEntry
from remote.screen.display import Display
from remote.screen.text import duration, show


@dataclass
class Sending:
    """What the server lacks of `entries`, whose files lie below `folder`. `partial`: of how many it
    has so many bytes, as the server tells."""

    folder: Path
    entries: Sequence[FileEntry]
    missing: frozenset[str]
    partial: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.partial = {sha256: count for sha256, count in self.partial.items() if count > 0}

    @property
    def contents(self) -> list[FileEntry]:
        return [
            entry
            for entry in {entry.sha256: entry for entry in self.entries}.values()
            if entry.sha256 in self.missing
        ]

    @property
    def total(self) -> int:
        """Bytes to send."""
        return sum(
            max(0, entry.size - self.partial.get(entry.sha256, 0)) for entry in self.contents
        )

    def frames(self, display: Display) -> Iterator[tuple[dict[str, Any], bytes]]:
        total, sent = self.total, 0
        for header, blob in upload_frames(self.folder, self.entries, self.missing, self.partial):
            yield header, blob
            sent += sum(length for _, length, _ in header["pieces"])
            display.transfer("sending", sent, total)


def waiting_note(session: Session, doing: str = "is deploying") -> Any:
    """Tells whom an operation waits for."""

    def note(event: dict[str, Any], blob: bytes) -> None:
        if isinstance(event.get("waiting"), dict):
            holder = event["waiting"]
            since = holder.get("since")
            age = (
                f", for {duration(time.time() - since)}" if isinstance(since, (int, float)) else ""
            )
            session.display.note(f"waiting: {show(holder.get('who') or 'somebody')} {doing}{age}")

    return note
