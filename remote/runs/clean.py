"""`clean`: shows what nothing on the server needs, and removes it when told so."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from remote.deploy import environment
from remote.deploy.deploy import ask_facts, read_requirements
from remote.deploy.needs import Known
from remote.errors import RemoteError
from remote.link.answers import Cleaned
from remote.link.sending import waiting_note
from remote.link.session import Session, who_am_i
from remote.records import LIVE
from remote.screen.tables import Column
from remote.screen.text import show, size
from remote.transfer.here import seen_here
from remote.watching.listing import list_runs

COLUMNS = (
    Column("what", ours=True),
    Column("name", least=16),
    Column("size", right=True),
    Column("why", least=12),
)

NAMED = "named by --run"
"""In the agent's reason for a run that goes although it is not here."""


def clean_one(session: Session, remove: bool, named: Sequence[str], dest: Path) -> Cleaned:
    """The server's answer: `items` that nothing needs (removed with `remove`), and the runs `kept`.
    `named`: runs that may go although `dest` has not all of them."""
    needed, here = needed_environment(session), find_here(session, dest)
    return session.ask(
        Cleaned,
        waiting_note(session),
        who=who_am_i(),
        environment=needed,
        named=list(named),
        here=here,
        remove=remove,
    )


def find_here(session: Session, dest: Path) -> dict[str, str]:
    """The runs of which all lies in `dest` now, each with the server's hash over what was compared.
    That somebody fetched a run says nothing of what this computer has."""
    fetched = [run.run for run in list_runs(session) if run.detail.fetched]
    found = {}
    for number, run in enumerate(fetched):
        session.display.doing(f"{number} of {len(fetched)} runs compared with what is here")
        if seen := seen_here(session, run, dest):
            found[run] = seen
    session.display.clear()
    return found


def needed_environment(session: Session) -> str:
    """The key of what the next deploy of this project would keep; empty where it would make another
    one."""
    facts = ask_facts(session)
    try:
        plan = environment.plan_environment(
            Known(facts), session.project.settings, read_requirements(session.project)
        )
    except RemoteError:
        return ""
    return str(plan.key or "") if plan.kind == "keep" else ""


def show_cleaned(session: Session, answer: Cleaned, remove: bool, dest: str | None = None) -> None:
    """What goes or has gone, and what each run that stays waits for."""
    display, items = session.display, answer.items
    elsewhere = f" --dest {shlex.quote(dest)}" if dest else ""
    ended = [run for run in answer.kept if run.state not in LIVE]
    for run in ended:
        display.note(f"kept: {show(run.run)} ({run.state}): {show(run.why)}")
    if ended:
        fab = f"fab -H {session.typed}"
        display.note(
            f"a run may go once all of it is here: {fab} fetch-results --run all{elsewhere}"
        )
        display.note(f"to remove one all the same: {fab} clean --run {show(ended[0].run)} --yes")
    if going := len(answer.kept) - len(ended):
        display.note(f"kept: {going} not ended yet")
    if not items:
        display.line("nothing to remove: everything there is in use, or not here yet")
        return
    display.table(COLUMNS, [[item.kind, item.name, size(item.bytes), item.why] for item in items])
    total = size(sum(item.bytes for item in items))
    if remove:
        display.line(f"removed: {len(items)} items, {total}")
        return
    display.line(f"nothing was removed yet ({len(items)} items, {total}); to do so:")
    # The others need no name; one that changes meanwhile stays.
    unfetched = [item for item in items if item.kind == "run" and NAMED in item.why]
    named = "".join(f" --run {item.name}" for item in unfetched) + elsewhere
    display.line(f"  fab -H {session.typed} clean{named} --yes")
