"""`clean`: shows what nothing on the server needs, and removes it when told so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from remote.deploy import environment
from remote.deploy.deploy import ask_facts, read_requirements
from remote.errors import RemoteError
from remote.link.sending import waiting_note
from remote.link.session import Session, who_am_i
from remote.screen.display import Display, show, size


def clean_one(session: Session, remove: bool, named: Sequence[str]) -> dict[str, Any]:
    """The server's answer: `items` that nothing needs (removed with `remove`), and the runs `kept`.
    `named`: runs that may go unfetched."""
    needed = needed_environment(session)
    return session.call_as_owner(
        "clean",
        waiting_note(session),
        who=who_am_i(),
        environment=needed,
        named=list(named),
        remove=remove,
    )


def needed_environment(session: Session) -> str:
    """The key of what the next deploy of this project would keep; empty where it would make another
    one."""
    facts = ask_facts(session, None)
    try:
        plan = environment.plan_environment(
            facts, session.project.settings, read_requirements(session)
        )
    except RemoteError:
        return ""
    return str(plan.key or "") if plan.kind == "keep" else ""


def show_cleaned(display: Display, session: Session, answer: dict[str, Any], remove: bool) -> None:
    items, kept = answer.get("items") or [], answer.get("kept") or []
    for run in kept:
        if run.get("state") in ("finished", "failed", "stopped"):
            display.note(
                f"kept: {show(run.get('run'))} ({show(run.get('state'))}; {show(run.get('why'))});"
                " --run with its id removes it"
            )
    if not items:
        display.line("nothing to remove: everything there is in use, or not fetched yet")
        return
    display.table(
        ["what", "name", "size", "why"],
        [[i.get("kind"), i.get("name"), size(i.get("bytes")), i.get("why")] for i in items],
    )
    total = size(sum(item["bytes"] for item in items if isinstance(item.get("bytes"), int)))
    if remove:
        display.line(f"removed: {len(items)} items, {total}")
    else:
        display.line(
            f"nothing was removed yet ({len(items)} items, {total}); to do so: fab -H"
            f" {session.typed} clean --yes"
        )
