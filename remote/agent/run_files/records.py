"""What the files of a run say, checked against what can be seen now: a record of `running` whose
processes are gone is corrected."""

import os
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Type, TypeVar

from remote.agent.launchers.choice import launcher_of
from remote.agent.root.calls import Refusal
from remote.agent.root.paths import RUN_ID, Layout, list_names, read_json, read_text
from remote.agent.root.run_json import load
from remote.agent.run_files.attempts import settle, trainer_checkpoints
from remote.agent.run_files.outputs import SHOWN, STEP
from remote.agent.shared.reading import differing, read
from remote.agent.shared.run_records import Asked, RunDetail
from remote.agent.shared.states import LIVE, State

T = TypeVar("T", Asked, RunDetail)

BESIDE = ("progress.json", "summary.json")
"""What a training writes about itself."""
FETCHED = ".fetched.json"
"""In a run's directory: a laptop has all of it, as it was when it had ended."""


class Found(NamedTuple):
    """A run, as its files in `path` say, checked."""

    run: str
    path: str
    asked: Asked
    detail: RunDetail
    progress: Mapping[str, Any] = {}
    summary: Mapping[str, Any] = {}

    @property
    def state(self) -> State:
        return self.detail.state

    def tell(self) -> Dict[str, Any]:
        """For the laptop."""
        told = {name: getattr(self.detail, name) for name in ("state", "reason", "host")}
        told.update(asked=differing(self.asked), detail=differing(self.detail))
        told.update(release=self.asked.release or None, now=time.time())
        return {**self._asdict(), **told}


def list_runs(layout: Layout) -> List[Found]:
    """Newest first."""
    runs = [describe_run(layout, name) for name in run_ids(layout)]
    return sorted(runs, key=since, reverse=True)


def run_ids(layout: Layout) -> List[str]:
    return [name for name in list_names(layout.runs) if RUN_ID.match(name)]


class LiveRuns:
    """The runs of this host that have not ended, for those who look every few seconds: a file is
    read again once it is another one, and nothing of a run that has ended."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.files: Dict[str, Tuple[Tuple[int, int], Any]] = {}

    def look(self) -> List[Found]:
        """Without progress and summary."""
        found = []
        for run in run_ids(self.layout):
            directory = self.layout.run(run)
            recorded = self._read(RunDetail, os.path.join(directory, "state.json"))
            if recorded.state not in LIVE:
                continue
            asked = self._read(Asked, os.path.join(directory, "run.json"))
            state = checked_state(directory, recorded, asked)
            if state.state in LIVE and not state.elsewhere:
                found.append(Found(run, directory, asked, state))
        return found

    def _read(self, kind: Type[T], path: str) -> T:
        """Written whole, each time under a new inode."""
        try:
            seen = os.stat(path)
        except OSError:
            return kind()
        mark = (seen.st_ino, seen.st_mtime_ns)
        if path not in self.files or self.files[path][0] != mark:
            found = read_json(path)
            if found is None:  # a network disk fails now and then: that is not remembered
                return kind()
            self.files[path] = mark, read(kind, found)
        record: T = self.files[path][1]
        return record


def since(run: Found) -> Tuple[float, str]:
    """When it was queued, by this server's own clock: laptops' clocks may be years apart, and would
    choose a wrong `latest`."""
    return run.detail.since or 0.0, run.run


def describe_run(layout: Layout, run: str) -> Found:
    """What the files say, checked: a record of `running` whose processes are gone is corrected."""
    directory = layout.run(run)
    asked = load(Asked, directory)
    state = checked_state(directory, load(RunDetail, directory), asked)
    if state.state == "unknown":
        state = state._replace(reason="its state.json can't be read")
    fetched, saved = read_fetched(directory, state), checkpointed(directory)
    state = state._replace(fetched=fetched, checkpointed=saved)
    if state.state == "running" and not state.elsewhere:
        shown = read_shown(directory)
        line, asking = str(shown.get("line") or ""), shown.get("asking") is True
        state = state._replace(line=line, asking=asking, step=read_step(directory))
    beside = [read_json(os.path.join(directory, name)) or {} for name in BESIDE]
    return Found(run, directory, asked, state, *beside)


def require_state(found: Found) -> None:
    """Raises Refusal for a run of which nobody can say whether it has ended."""
    if found.state == "unknown":
        raise Refusal(
            "RunFailed",
            f"{found.run}: {found.detail.reason}",
            f"fetch it, then remove it there: fab -H … clean --run {found.run} --yes",
        )


def read_shown(directory: str) -> Dict[str, Any]:
    """What its terminal shows and waits for; empty where it tells nothing."""
    return read_json(os.path.join(directory, SHOWN)) or {}


def read_step(directory: str) -> Optional[str]:
    """The line that is being run of a command of several; None for any other one."""
    return " ".join(read_text(os.path.join(directory, STEP))[:400].split()) or None


def checkpointed(directory: str) -> Optional[float]:
    """When our trainer has saved last; None where it has not."""
    try:
        return max(map(os.path.getmtime, trainer_checkpoints(directory)), default=None)
    except OSError:  # it removes older ones meanwhile
        return None


def read_mark(directory: str, state: RunDetail) -> Dict[str, Any]:
    """What a laptop has of this run since it ended; empty if it was not fetched since."""
    mark = read_json(os.path.join(directory, FETCHED)) or {}
    return (
        mark
        if isinstance(mark.get("time"), (int, float)) and mark.get("ended") == state.ended
        else {}
    )


def read_fetched(directory: str, state: RunDetail) -> Optional[float]:
    """When this run was fetched completely after its end; None if it was not, or if remote.results
    left something of it there."""
    mark = read_mark(directory, state)
    return float(mark["time"]) if mark and not mark.get("narrowed") else None


def checked_state(directory: str, state: RunDetail, asked: Asked) -> RunDetail:
    """Correct a recorded state by what its launcher can see now."""
    if state.state not in LIVE:
        return state
    try:
        told, verdict = launcher_of(asked).look(directory, state, asked)
        return settle(directory, told, verdict, asked) if verdict else told
    except OSError as error:
        # A disk that takes nothing keeps nobody from what is on it.
        return state._replace(reason=f"as recorded; looking failed: {error.strerror or error}")


def find_run(layout: Layout, name: str, known: Optional[List[Found]] = None) -> Found:
    """By id, by a unique beginning of it, by the name given to it, or `latest`. Raises Refusal
    otherwise."""
    known = list_runs(layout) if known is None else known
    if not known:
        raise Refusal(
            "NotFound", "no run of this project is on the server", "start one: fab -H … train"
        )
    if name == "latest":
        return known[0]
    exact = [run for run in known if run.run == name]
    named = exact or [run for run in known if run.asked.name == name][:1]
    matching = named or [run for run in known if run.run.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise Refusal(
            "NotFound",
            f"no run {name!r:.120} on the server",
            f"the newest is {known[0].run}; fab -H … status lists all",
        )
    names = ", ".join(run.run for run in matching[:4]) + (", …" if matching[4:] else "")
    raise Refusal(
        "NotFound", f"{len(matching)} runs begin with {name!r:.120}: {names}", "give more of its id"
    )
