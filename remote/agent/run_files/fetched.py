"""What a laptop has of a run: told by it, and compared with what is here now."""

import os
import time
from typing import Any, Dict, NamedTuple, Optional

from remote.agent.releases.releases import release_of
from remote.agent.root.calls import Call, operation
from remote.agent.root.paths import Layout, write_json
from remote.agent.run_files.outputs import find_outputs
from remote.agent.run_files.records import FETCHED, Found, find_run, read_mark
from remote.agent.shared.states import FINAL


class Fetched(NamedTuple):
    """A laptop has every file, verified, of a run that had ended (at `ended`) when its files were
    listed, as `seen`; `narrowed`: but for what remote.results leaves here."""

    run: str
    ended: Any
    files: int
    who: str
    seen: str
    narrowed: bool = False


@operation("fetch_done", takes=Fetched)
def fetch_done(call: Call, fetched: Fetched) -> Dict[str, Any]:
    found = find_run(call.layout, fetched.run)
    if found.state not in FINAL or found.detail.ended != fetched.ended:
        return {"marked": False}
    mark = dict(fetched._asdict(), time=time.time())
    write_json(os.path.join(found.path, FETCHED), mark)
    return {"marked": True}


def why_not_fetched(
    layout: Layout, run: Found, narrowed: bool = False, directory: str = ""
) -> Optional[str]:
    """None where a laptop has all that the run has made, as it is now; `narrowed`: or all that it
    wanted of it."""
    directory = directory or run.path
    mark = read_mark(directory, run.detail)
    if not mark:
        return "not fetched completely since it ended"
    if mark.get("narrowed") and not narrowed:
        return "fetched but for what remote.results leaves out"
    release = release_of(layout, run.asked.release)
    if mark.get("seen") != find_outputs(directory, release, run.path).seen():
        return "changed since it was fetched"
    return None
