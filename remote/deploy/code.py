"""The project's code on its way to the server: what is missing there, room for it, sending it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from remote.errors import ServerUnfit
from remote.link.answers import ReleasePut, ReleaseUse
from remote.link.events import Ready
from remote.link.facts import Facts, Root
from remote.link.sending import Sending, waiting_note
from remote.link.session import Session, who_am_i
from remote.records import Release, Step
from remote.screen.text import show, size

AGENT_MIB = 1
"""What our own program and records take there."""
EAGER_BYTES = 256 << 10
"""So little is sent without waiting for the server's consent: a refusal costs less than the round
trip."""


@dataclass(frozen=True)
class ReleasePlan:
    """`action`: keep, use (it's on the server, but not current) or send."""

    action: Literal["keep", "use", "send"]
    why: str


def plan_release(facts: Facts, release: Release) -> ReleasePlan:
    if facts.release_exists:
        if facts.current == release.tree:
            return ReleasePlan("keep", "code kept: nothing changed")
        return ReleasePlan("use", "code is on the server already; made current")
    return ReleasePlan("send", "code changed" if facts.releases else "first release")


def put_release(session: Session, facts: Facts, release: Release) -> Step:
    """Make it the server's current one."""
    plan = plan_release(facts, release)
    label = f"{release.tree[:12]}, {len(release.entries)} files, {size(release.size)}"
    if plan.action == "keep":
        return Step(False, f"{plan.why} ({label})")
    if plan.action == "use":
        session.ask(ReleaseUse, waiting_note(session), tree=release.tree, who=who_am_i())
        return Step(True, f"{plan.why} ({label})")
    require_room(session, facts.root, release)
    return Step(True, f"{plan.why}: {send_release(session, facts, release)} ({label})")


def require_room(session: Session, root: Root, release: Release) -> None:
    """Known before anything is sent. The server checks again, under its lock."""
    need = (2 * sum(max(entry.size, 4096) for entry in release.entries) >> 20) + AGENT_MIB
    if root.free_mib is not None and root.free_mib < need:
        raise ServerUnfit(
            f"the disk at {show(root.mount)} has {root.free_mib} MiB free, the code needs {need}"
            " MiB there",
            host=session.host,
            step="root",
            remedy="free some space (fab … clean), or set remote.root to another disk",
        )


def send_release(session: Session, facts: Facts, release: Release) -> str:
    """Send what is missing; returns how much that was."""
    started = time.monotonic()
    ready = Ready(facts.missing, facts.partial)
    sending = Sending(session.project.directory, release.entries, ready=ready)
    session.ask(
        ReleasePut,
        waiting_note(session),
        sending.upload(session),
        eager=facts.missing is not None and sending.total <= EAGER_BYTES,
        tree=release.tree,
        manifest=release.entries,
        origin=release.origin,
        who=who_am_i(),
    )
    session.display.clear()
    seconds = time.monotonic() - started
    count = len(sending.contents)
    return f"{count} file{'s' * (count != 1)} sent, {size(sending.total)}, {seconds:.1f} s"
