"""Runs seen from here: what to ask for, starting it once, and reading what the server tells about
them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from remote.agent.shared.reading import differing
from remote.errors import (
    AuthenticationFailed,
    ConnectionLost,
    GpuUnfit,
    HostKeyRefused,
    RemoteError,
    Unreachable,
    UsageError,
)
from remote.link.answers import Started
from remote.link.session import Project, Session
from remote.project.command import label_of, plan_words
from remote.project.options import RunOptions, TrainOptions
from remote.project.own_trainer import load_config_module, no_trainer, runs_own_trainer
from remote.project.results import lock_file, pending_in, writing
from remote.project.run_env import read_env
from remote.project.settings import listed
from remote.records import Asked
from remote.runs.limits import limits_of, shutdown_of

T = TypeVar("T")
NAME = re.compile(r"(?!(?:latest|all)\Z)[A-Za-z0-9][A-Za-z0-9_-]{0,39}\Z")
OWN_OPTIONS = {
    "data": "give it as --data",
    "devices": "give it as --devices",
    "recipe": "give it as --recipe",
    "run_dir": "the run's directory is chosen here",
}
GO_ON = ("--resume", "auto")
"""To our trainer: from its newest checkpoint, with its own values."""
MOST_AT_ONCE = 16
PENDING_S = 24 * 3600.0
"""A launch whose answer was lost is taken up again within this time."""


@dataclass(frozen=True)
class TrainRequest(RunOptions):
    """What the user asked for on the command line, read and checked."""

    fields: tuple[tuple[str, str], ...] = ()
    # A webhook, told when the run has ended. A secret: in no record, log or error.
    notify: str = field(default="", repr=False)
    # What follows `--`, for a command of one's own; None: nothing was given.
    arguments: tuple[str, ...] | None = None
    # Variables for the run. Their values are secrets, as `notify` is.
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    # The plan to shut the server down after its last run.
    shutdown: Mapping[str, Any] | None = None

    @property
    def beside(self) -> dict[str, Any]:
        """What is asked for beside run.json: the run's hidden files, and the server's own end."""
        return {"notify": self.notify, "env": dict(self.env), "shutdown": self.shutdown}


def parse_request(project: Project, options: TrainOptions) -> TrainRequest:
    """Raises UsageError with every mistake at once; nothing has been sent by then."""
    errors: list[str] = []
    settings, typed, arguments = project.settings, options.set, options.arguments
    if project.has_own_trainer and arguments:
        typed, arguments = [*typed, *as_fields(arguments, errors)], None
    fields = read_fields(typed, errors)
    errors += option_errors(options, settings.launcher == "slurm")

    def attempt(read: Callable[..., T], *given: Any) -> T | None:
        try:
            return read(*given)
        except ValueError as error:
            errors.append(str(error))
            return None

    attempt(limits_of, options, settings.launcher)
    shutdown = attempt(shutdown_of, options.shutdown_after, options.keep_unfetched, settings)
    address = attempt(read_address, options.notify)
    always = attempt(read_env, listed(settings.env), "remote.env", project.directory)
    given = attempt(read_env, options.env, "--env", project.directory)
    request = TrainRequest(
        **{option.name: getattr(options, option.name) for option in dataclasses.fields(RunOptions)},
        fields=fields,
        notify=address or "",
        arguments=tuple(arguments) if arguments else None,
        env={**(always or {}), **(given or {})},
        shutdown=shutdown,
    )
    errors += command_errors(project, request)
    if errors:
        remedy = "fab train --help tells what can be given"
        if any("unknown field" in error for error in errors):
            remedy = "python -m trainer.train --print_config shows every field"
        raise UsageError("; ".join(errors), step="train", remedy=remedy)
    return request


def option_errors(options: TrainOptions, by_slurm: bool) -> list[str]:
    name, devices, data, gpus = options.name, options.devices, options.data, options.gpus
    wrong = {
        f"--name may hold letters, digits, - and _, 40 at most, not latest or all: {name!r:.80}": (
            name is not None and not NAME.match(name)
        ),
        f"--devices must be auto or indices such as 0,1, not {devices!r:.80}": (
            not re.fullmatch(r"auto|\d+(,\d+)*", devices)
        ),
        f"--data must be a path on the server, on one line, not {data!r:.80}": (
            data is not None and (not data.strip() or "\0" in data or "\n" in data)
        ),
        "--gpus is a number from 1 on, and goes with --devices auto alone": (
            gpus is not None and (gpus < 1 or devices != "auto")
        ),
        "--with-new-code belongs to --resume: a new run has today's code": (
            options.with_new_code and not options.resume
        ),
        "--interactive needs a terminal here": (
            options.interactive and not (sys.stdin.isatty() and sys.stdout.isatty())
        ),
        "--nodes is a number from 2 on": options.nodes is not None and options.nodes < 2,
        "--max-restarts must not be negative": options.max_restarts < 0,
        "--devices: Slurm chooses the GPUs; ask for a number: --gpus 2": (
            by_slurm and devices != "auto"
        ),
        "--now: under Slurm every run goes through the queue; leave it out": by_slurm
        and options.now,
    }
    return [text for text, is_wrong in wrong.items() if is_wrong]


def command_errors(project: Project, request: TrainRequest) -> list[str]:
    """What our trainer does not take, or what only our trainer would."""
    if project.has_own_trainer:
        try:
            effective_config(project, request)
        except load_config_module(project.directory).ConfigError as error:
            return list(error.errors)
    elif missing := no_trainer(project.settings.command, project.directory):
        return [missing]
    elif request.recipe or request.fields:
        return [
            "--recipe and --set belong to our trainer; the arguments of a command of one's own"
            " follow `--`"
        ]
    return []


def read_address(given: str | None) -> str:
    """Of --notify: an address, or @FILE that holds one and keeps it out of process lists. Raises
    ValueError, without the address."""
    text = given or ""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            raise ValueError(f"--notify {given}: the file can't be read") from None
    if text and not re.fullmatch(r"https?://[^\s\x00-\x1f\x7f]{3,2000}", text):
        raise ValueError("--notify needs an http or https address, or @FILE with one in it")
    return text


def as_fields(arguments: Sequence[str], errors: list[str]) -> list[str]:
    """Our trainer's options, as typed behind `--`, as fields; what is none goes to `errors`."""
    fields, words = [], iter(arguments)
    for word in words:
        name, sign, value = word.partition("=")
        if not name.startswith("--"):
            errors.append(
                f"behind -- an option such as --max_epochs 3 is expected, not {word!r:.80}"
            )
            continue
        fields.append(f"{name[2:]}={value if sign else next(words, '')}")
    return fields


def read_fields(typed: Iterable[str], errors: list[str]) -> tuple[tuple[str, str], ...]:
    """Of --set; what is no field of a recipe goes to `errors`."""
    pairs = []
    for item in typed:
        key, sign, value = item.partition("=")
        if not sign or not key:
            errors.append(f"--set needs field=value, not {item!r:.80}")
        elif key in OWN_OPTIONS:
            errors.append(f"--set {key}=…: {OWN_OPTIONS[key]}")
        else:
            pairs.append((key, value))
    return tuple(pairs)


def effective_config(project: Project, request: TrainRequest) -> Any:
    """The trainer's own; raises its ConfigError."""
    recipe = request.recipe or project.settings.recipe
    return load_config_module(project.directory).load_config(recipe, dict(request.fields))


def name_run(project: Project, request: TrainRequest) -> str:
    settings = project.settings
    own = settings.recipe if project.has_own_trainer else label_of(settings.command)
    return new_run_id(request.name or request.recipe or own)


def new_run_id(label: str) -> str:
    """Sorts by time, and tells a person what it was."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{label}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class Place:
    """Where a run finds what it needs on the server; `devices` is the trainer's own option."""

    python: str
    run_dir: str
    images: str | None
    devices: str

    def trainer_words(self, request: TrainRequest) -> list[str]:
        words = ["--run_dir", self.run_dir, "--devices", self.devices]
        words += ["--data", self.images] if self.images is not None else []
        return words + [
            word for key, value in request.fields for word in ("--set", f"{key}={value}")
        ]


def plan_argv(
    project: Project, command: str, request: TrainRequest, there: Place, first: Sequence[str]
) -> tuple[str, ...]:
    """The command's words. `first`: what our trainer is told before all else that was asked for; a
    command of one's own gets what was typed for it."""
    words: Sequence[str] = request.arguments or ()
    if runs_own_trainer(command, project.directory):
        words = [*first, *there.trainer_words(request)]
    return tuple(plan_words(command, words, there.python))


def require_gpu(config: Any, has_gpu: bool, host: str) -> None:
    """The recipe wants a GPU and the server has none: said before anything is started."""
    if getattr(config, "accelerator", None) == "gpu" and not has_gpu:
        raise GpuUnfit(
            "the recipe wants a GPU and this server shows none",
            host=host,
            step="train",
            remedy=(
                "add --set accelerator=cpu to train on its processor, or --recipe demo to try"
                " the way"
            ),
        )


class Pending:
    """Remembers a launch until the user was told of its run, so that a command repeated after a cut
    is the same start.

    A launch that is still under way in another process is not taken up: two such commands at once
    are two starts.
    """

    def __init__(self, project: Project, host: str, request: TrainRequest, tree: str) -> None:
        key = json.dumps(
            [host, project.settings.root, project.settings.command, repr(request), tree]
        )
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        self._places = [
            project.dest / ".pending" / f"{name}{f'-{number}' if number else ''}.json"
            for number in range(MOST_AT_ONCE)
        ]
        self._dest = project.dest
        self._lock: IO[bytes] | None = None
        self.path = self._places[0]

    def take(self) -> str | None:
        """The run of a launch that was cut off, if there is one. From here on it is ours."""
        with writing(self._dest):
            pending_in(self._dest)
            for place in self._places:
                self.path, self._lock = place, lock_file(place.with_suffix(".lock"))
                if self._lock is not None:
                    break
        return _remembered_run(self.path)

    def is_remembered(self) -> bool:
        return any(_remembered_run(place) for place in self._places)

    def write(self, run: str) -> None:
        temporary = self.path.with_suffix(".tmp")
        with writing(self._dest):
            temporary.write_text(json.dumps({"run": run, "time": time.time()}))
            os.replace(temporary, self.path)

    @contextlib.contextmanager
    def launching(self) -> Iterator[None]:
        """What the server refuses is forgotten. What is lost on the way may well have happened."""
        try:
            yield
        except (ConnectionLost, Unreachable, AuthenticationFailed, HostKeyRefused):
            raise
        except RemoteError:
            self.clear()
            raise

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Leave what is remembered to the next call. The lock's file stays: another process may be
        about to lock it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _remembered_run(place: Path) -> str | None:
    try:
        value = json.loads(place.read_text())
        if 0 <= time.time() - float(value["time"]) < PENDING_S:
            return str(value["run"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def start_run(session: Session, run: str, asked: Asked, beside: Mapping[str, Any]) -> Started:
    """Create and launch; the agent does it once for an id, however often it is asked."""
    return session.ask(Started, run=run, asked=differing(asked), **beside)
