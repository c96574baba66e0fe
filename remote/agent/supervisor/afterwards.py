"""What follows a run that has ended. Never harms it, for it is over."""

import os
import sys

from remote.agent.root.paths import layout_of, read_json, read_text
from remote.agent.run_files.private import ADDRESS
from remote.agent.runs.listing import submit_waiting
from remote.agent.shared.run_records import Asked
from remote.agent.shared.states import FINAL
from remote.agent.supervisor import notify
from remote.agent.supervisor.run_state import RunState


def tell_its_address(state: RunState, asked: Asked) -> None:
    """Post to the address that it was given, if there is one, once the run has ended."""
    if state.known.state not in FINAL:
        return
    address = read_text(os.path.join(state.directory, ADDRESS)).strip()
    if not address:
        return
    summary = read_json(os.path.join(state.directory, "summary.json")) or {}
    facts = notify.facts_of(os.path.basename(state.directory), asked, state.known, summary)
    state.tell(notified=notify.post(address, facts))


def submit_others(directory: str) -> None:
    """A place in the site's count of jobs may be free now."""
    try:
        name = os.path.basename(sys.argv[0])
        os.environ.setdefault("REMOTE_AGENT_HASH", name[: -len(".pyz")])
        submit_waiting(layout_of(directory))
    except Exception as problem:
        sys.stderr.write(f"runs that wait were not submitted here: {problem}\n")
