"""A sweep's runs that were fetched: what they have come to is known also where no server tells it
any more."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from remote.link.decoding import WrongForm, decode
from remote.project.results import load, read_mapping
from remote.records import Asked, Run


def runs_here(dest: Path, sweep: str) -> dict[str, Run]:
    """By id. Of one that had not ended when it was fetched nobody here knows what became of it."""
    found = {}
    for place in sorted(dest.glob("2*")):
        if load(Asked, place).sweep == sweep and (run := read_run(place)):
            found[run.run] = run if run.has_ended else dataclasses.replace(run, state="unknown")
    return found


def read_run(place: Path) -> Run | None:
    """As the server told it when it was fetched; None where these are no records of a run."""
    asked, state = read_mapping(place, "run.json"), read_mapping(place, "state.json")
    told = {name: state.get(name) for name in ("state", "reason", "host")}
    told |= {"run": place.name, "release": asked.get("release"), "asked": asked, "detail": state}
    told |= {name: read_mapping(place, f"{name}.json") for name in ("progress", "summary")}
    try:
        return decode(Run, told)
    except WrongForm:
        return None
