"""`sweep`: one run for each point of a grid, spread over the hosts' own queues. What was started
where is remembered here before it is started, so that the same command never starts a point
twice."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from remote.deploy.deploy import deploy
from remote.deploy.shown import show_steps
from remote.errors import UsageError
from remote.hosts.sweep_table import label_of
from remote.link.facts import Facts
from remote.link.session import Project, Session
from remote.project.options import TrainOptions
from remote.project.results import load, writing
from remote.records import FINAL, Asked, Run, RunDetail
from remote.runs.launch import asked_for
from remote.runs.placement import (
    Launch,
    Placement,
    place_run,
    prepare_launch,
    start_patiently,
    with_weights,
)
from remote.runs.request import TrainRequest, new_run_id, parse_request, start_run
from remote.runs.shutdown import tell_plan
from remote.watching.listing import list_runs

NAME = re.compile(r"(?!(?:latest|all)\Z)[A-Za-z0-9][A-Za-z0-9_-]{0,31}\Z")
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
MOST = 1000
"""Points of one sweep."""


@dataclass(frozen=True)
class Point:
    """Values of a grid, and their run. `sent`: its start was asked for, and may have happened;
    `started`: it has."""

    values: Mapping[str, str]
    run: str | None = None
    host: str | None = None
    sent: bool = False
    started: bool = False


def parse_grid(given: Sequence[str]) -> list[dict[str, str]]:
    """Every combination of `key=a,b,c`, the last key's values changing first. Raises UsageError."""
    axes: dict[str, list[str]] = {}
    for item in given:
        key, sign, text = item.partition("=")
        values = [value.strip() for value in text.split(",") if value.strip()]
        if not sign or not KEY.match(key) or not values:
            raise UsageError(
                f"--grid needs key=value,value,…, not {item!r:.80}",
                step="sweep",
                remedy="for example --grid learning_rate=0.001,0.002 --grid seed=1,2,3",
            )
        if key in axes:
            raise UsageError(f"--grid {key} is given twice", step="sweep")
        axes[key] = list(dict.fromkeys(values))
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if not given or len(points) > MOST:
        what = f"{len(points)} points, {MOST} at most" if given else "--grid is missing"
        raise UsageError(f"a sweep needs a grid: {what}", step="sweep", remedy="--grid seed=1,2,3")
    return points


def request_of(project: Project, options: TrainOptions, values: Mapping[str, str]) -> TrainRequest:
    """A point's own. Raises UsageError that names the point."""
    try:
        return parse_request(project, options_of(options, values, project.has_own_trainer))
    except UsageError as error:
        error.message = f"{label_of(values)}: {error.message}"
        raise


def options_of(options: TrainOptions, values: Mapping[str, str], own: bool) -> TrainOptions:
    """A point's own options: fields of our trainer, or the words of a command of one's own with
    {key} in them replaced. Raises UsageError where a key or a {key} has no counterpart."""
    if own:
        fields = [*options.set, *(f"{key}={value}" for key, value in values.items())]
        return dataclasses.replace(options, set=fields)
    words = list(options.arguments or ())
    named = {key for word in words for key in re.findall(r"\{([A-Za-z_][\w.-]*)\}", word)}
    if named != values.keys():
        wrong = ", ".join(sorted(named ^ values.keys()))
        raise UsageError(
            f"--grid and the {{…}} behind -- name different things: {wrong}",
            step="sweep",
            remedy="fab -H … sweep --grid lr=0.1,0.2 -- --lr {lr}",
        )
    for key, value in values.items():
        words = [word.replace(f"{{{key}}}", value) for word in words]
    return dataclasses.replace(options, arguments=words)


# -- what is remembered here


class Book:
    """results/sweeps/NAME/sweep.json: every point, written before anything is started."""

    def __init__(self, project: Project, name: str) -> None:
        self.name = name
        self.directory = project.dest / "sweeps" / name
        self.points: list[Point] = []
        # What all points share; None: not known, or not started.
        self.shared: dict[str, Any] | None = None
        self._read()

    def _read(self) -> None:
        try:
            value = json.loads((self.directory / "sweep.json").read_text(encoding="utf-8"))
            self.points = [Point(**point) for point in value["points"]]
            self.shared = value.get("shared")
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(
                f"{self.directory}/sweep.json can't be read",
                step="sweep",
                remedy="remove it, and give another --name",
            ) from None

    def add(self, values: Iterable[Mapping[str, str]], shared: Mapping[str, Any]) -> None:
        """Raises UsageError where points were started otherwise: they would count as done."""
        begun = self.shared if any(point.sent for point in self.points) else None
        self.refuse_other(begun or shared, shared)
        self.shared = dict(shared)
        known = [dict(point.values) for point in self.points]
        self.points += [Point(new) for new in values if dict(new) not in known]
        self.write()

    def adopt(
        self, project: Project, options: TrainOptions, found: Sequence[tuple[str, Run]]
    ) -> int:
        """Points that were started from elsewhere, or before this book was lost, count as started:
        of the runs that were `found`, each with its host, the last one of a point. Returns how many
        those are. Raises UsageError where they were started otherwise."""
        runs = {label_of(run.asked.point): (host, run) for host, run in found}
        unknown = [one for one in self.points if not one.sent and label_of(one.values) in runs]
        for point in unknown:
            host, run = runs[label_of(point.values)]
            self.refuse_other(*compared(project, options, run.asked))
            self.change(point, run=run.run, host=host, sent=True, started=True)
        return len(unknown)

    def refuse_other(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        other = [key for key in now if then.get(key) != now[key]]
        if other:
            raise UsageError(
                f"the sweep {self.name!r} was started with another {other[0]}",
                step="sweep",
                remedy="repeat its command as it was, or give another --name",
            )

    def change(self, point: Point, **changes: Any) -> Point:
        changed = dataclasses.replace(point, **changes)
        self.points[self.points.index(point)] = changed
        self.write()
        return changed

    def write(self) -> None:
        place = self.directory / "sweep.json"
        rows = [dataclasses.asdict(point) for point in self.points]
        text = json.dumps({"name": self.name, "shared": self.shared, "points": rows}, indent=1)
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            place.with_suffix(".tmp").write_text(text, encoding="utf-8")
            os.replace(place.with_suffix(".tmp"), place)


def shared_by_all(project: Project, options: TrainOptions) -> dict[str, Any]:
    """Of what was typed and set, what decides every point's result; named as people know it."""
    return {
        "remote.command": project.settings.command,
        "--recipe": options.recipe or project.settings.recipe,
        "--set": sorted(options.set),
        "--data": options.data,
        "command behind --": list(options.arguments or ()),
    }


def compared(
    project: Project, options: TrainOptions, asked: Asked
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of one point: as its run was asked for, and as it would be now."""
    request, settings = request_of(project, options, asked.point), project.settings
    recipe = (request.recipe or settings.recipe) if project.has_own_trainer else None
    words = ("remote.command", "--recipe", "--set", "--data", "command behind --")
    then = (asked.command, asked.recipe, dict(asked.fields), asked.data, asked.arguments)
    now = (settings.command, recipe, dict(request.fields), request.data, request.arguments or ())
    return dict(zip(words, then, strict=True)), dict(zip(words, now, strict=True))


def default_name(project: Project, options: TrainOptions, grid: Sequence[str]) -> str:
    """The same for the same command."""
    key = repr((project.settings.command, options, sorted(grid)))
    return f"sweep-{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"


# -- which host


def capacity(facts: Facts) -> int:
    """Runs that go at once there: one for each GPU that can be used, else one on the processor."""
    return max(1, len(facts.usable))


def assign(points: Sequence[Point], hosts: Mapping[str, Facts]) -> dict[str, list[Point]]:
    """Points by host. Those that may have been started stay where they are; others go where the
    shortest queue is, for the GPUs there."""
    loads = {host: len(facts.live) for host, facts in hosts.items()}
    given: dict[str, list[Point]] = {host: [] for host in hosts}
    for point in points:
        if point.sent:
            if point.host in given:
                given[str(point.host)].append(point)
            continue
        host = min(hosts, key=lambda name: (loads[name] + 1) / capacity(hosts[name]))
        loads[host] += 1
        given[host].append(point)
    return given


# -- starting


def start_points(
    session: Session, book: Book, points: Sequence[Point], options: TrainOptions
) -> int:
    """Start those of the host's points that are not there yet; returns how many were. One that has
    been fetched and cleaned is not started again, over what is here of it."""
    known = list_runs(session) if any(point.sent for point in points) else []
    there, waiting = {run.run for run in known}, []
    for point in points:
        here = session.project.dest / str(point.run)
        ended = load(RunDetail, here).state in FINAL
        if point.sent and (point.run in there or ended):
            book.change(point, started=True)
        else:
            waiting.append(point)
    if not waiting:
        return 0
    asked = [(point, request_of(session.project, options, point.values)) for point in waiting]
    deployed = deploy(session, data=asked[0][1].data)
    show_steps(session, deployed, only_changes=True)
    for number, (point, request) in enumerate(asked, 1):
        launch = with_weights(prepare_launch(session, request, deployed))
        start_point(launch, book, point)
        session.display.doing(f"{session.host}: {number} of {len(asked)} points started")
    session.display.clear()
    tell_plan(session, asked[0][1].shutdown)
    return len(asked)


def start_point(launch: Launch, book: Book, point: Point) -> None:
    session, request = launch.session, launch.request
    index = book.points.index(point) + 1
    name = f"{book.name}-{index}"
    run = point.run or new_run_id(name)
    point = book.change(point, run=run, host=session.host, sent=True)
    named = dataclasses.replace(launch, request=dataclasses.replace(request, name=name))
    asked = asked_for(named, run, queued(launch, request))
    asked = asked._replace(sweep=book.name, point=point.values)
    start_patiently(session, partial(start_run, session, run, asked, request.beside))
    book.change(point, started=True)


def queued(launch: Launch, request: TrainRequest) -> Placement:
    """Every point waits in the server's queue: for GPUs, or for its turn on the processor. Under
    Slurm it is a job, sent later where the site takes no more at once."""
    if launch.by_slurm:
        return dataclasses.replace(place_run(launch, {}), later=True)
    has_gpu = bool(launch.deployed.facts.gpus.gpus) and launch.wants_gpu
    return Placement((), queue=True, wanted=(request.gpus or 1) if has_gpu else 0)


def check_name(name: str) -> str:
    if not NAME.match(name):
        raise UsageError(
            "--name may hold letters, digits, - and _, 32 at most, not latest or all:"
            f" {name!r:.80}",
            step="sweep",
        )
    return name
