"""From a task to what it does: settings read, hosts completed, an expected error as one line with
its exit code."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import invoke.tasks

from remote.errors import INTERRUPTED, RemoteError, UsageError
from remote.screen.plain import leave_pipe, open_closed_streams
from remote.tasks.command_line import LINE

if TYPE_CHECKING:  # loaded only once a task runs: `fab --list` is quick
    from remote.link.session import Project, Session
    from remote.records import Settings
    from remote.screen.display import Display
    from remote.ssh.target import Target

    Answers = Sequence[tuple[Target, Any, RemoteError | None]]
    """Per host what came of a question to it, or why nothing did."""
    Failed = Sequence[tuple[Target, RemoteError]]


SHOWN_AGAIN = "interrupted: the training goes on; the same command shows it again"
ARRIVED = "interrupted: what has arrived stays; the same command goes on behind it"
INTERRUPTED_IN = {
    "train": "interrupted: a run that was started goes on; the same command leads back to it",
    "sweep": "interrupted: what has started goes on; the same command starts the rest",
    "follow": SHOWN_AGAIN,
    "logs": SHOWN_AGAIN,
    "wait": "interrupted: the training goes on; the same command waits for it again",
    "stop": "interrupted: what was not told to stop goes on; the same command stops it",
    "fetch-results": ARRIVED,
    "upload-data": ARRIVED,
    "deploy": (
        "interrupted: what has arrived stays, and a build that was begun goes on there; the same"
        " command goes on behind it"
    ),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """One call of a task: its name, the project, the hosts, what follows `--`, and where to show
    things."""

    name: str
    project: Project
    targets: Sequence[Target]
    words: Sequence[str]
    display: Display

    @property
    def json(self) -> bool:
        return self.display.json_mode

    def with_settings(self, **changes: Any) -> Work:
        settings = dataclasses.replace(self.project.settings, **changes)
        project = dataclasses.replace(self.project, settings=settings)
        return dataclasses.replace(self, project=project)

    def tell_json(self, value: Any) -> None:
        """The answer for scripts, where it was asked for."""
        if self.json:
            self.display.json(value)

    def session(self, target: Target) -> Session:
        from remote.link.session import Session

        return Session(target, self.project, self.display)

    def dest_of(self, given: str | None) -> Path:
        """Where fetched runs are kept here."""
        return Path(given).expanduser() if given else self.project.dest

    def only_target(self, options: str = "") -> Target:
        """`options`: with which the task takes no more."""
        if len(self.targets) > 1:
            name = f"{self.name} {options}".strip()
            text = f"{name} takes one host, {len(self.targets)} were given"
            together = "; all of them for one training: --nodes" if self.name == "train" else ""
            remedy = f"fab -H {self.targets[0].typed} {name}{together}"
            raise UsageError(text, remedy=remedy)
        return self.targets[0]

    def only_session(self) -> Session:
        return self.session(self.only_target())

    def session_of(self, run: str, options: str = "") -> tuple[Session, str]:
        """The host to ask about a run, and the run's name there. Of several hosts that train it
        together, the first that answers, the one that leads before all others."""
        from remote.ssh.target import typed_together
        from remote.watching.listing import list_runs

        if len(self.targets) == 1:
            return self.session(self.targets[0]), run
        answers = self.on_all(lambda session: list_runs(session, run))
        found = [
            (known.detail.elsewhere, known.asked.nodes.rank, target, known.run)
            for target, runs, _ in answers
            for known in runs or []
            if known.asked.nodes.count > 1
        ]
        newest = max((row[3] for row in found), default="")
        together = [row for row in found if row[3] == newest]
        if not together:
            raise_if_silent(answers)
            return self.session(self.only_target(options)), run
        _, _, target, name = min(together, key=lambda row: row[:2])
        session = self.session(target)
        session.together = typed_together(self.targets)
        return session, name

    def on_all(self, ask: Callable[[Session], Any]) -> Answers:
        """Ask every host at once. A host that is down gives its error in place of an answer."""

        def one(target: Target) -> tuple[Target, Any, RemoteError | None]:
            try:
                with self.session(target) as session:
                    return target, ask(session), None
            except RemoteError as error:
                return target, None, error

        if len(self.targets) == 1:
            return [one(self.targets[0])]
        # Questions on the terminal would mix: with several hosts nothing is asked.
        quiet = [dataclasses.replace(target, interactive=False) for target in self.targets]
        with ThreadPoolExecutor(min(16, len(quiet))) as pool:
            return list(pool.map(one, quiet))

    def in_turn(self, act: Callable[[Session], Iterable[Any]]) -> int:
        """Host after host. What `act` yields of each is the answer for scripts, with why others
        failed."""
        done: list[Any] = []

        def act_on(session: Session) -> None:
            for row in act(session):
                done.append(row)

        failed = self.on_each(self.targets, act_on)
        for target, error in failed:
            done.append(failure_row(target, error))
        self.tell_json(done)
        return first_code(failed)

    def on_each(
        self, targets: Iterable[Target], act: Callable[[Session], Any]
    ) -> list[tuple[Target, RemoteError]]:
        """Host after host. Where one fails that is told, and the others are done all the same; only
        a command that is wrong is wrong for all. Those that failed."""
        failed = []
        for target in targets:
            self.display.fab = f"fab -H {target.typed}"
            try:
                with self.session(target) as session:
                    act(session)
            except RemoteError as error:
                self.display.error(error)
                failed.append((target, error))
                if isinstance(error, UsageError):
                    break
        return failed

    def those_up(self, answers: Answers, otherwise: str) -> list[tuple[Target, Any]]:
        """The hosts that have answered; of each other one is told what happens `otherwise`. Raises
        the first one's error where none has."""
        raise_if_silent(answers)
        for target, _, error in answers:
            if error:
                self.display.note(f"{target.spec}: {error.message}; {otherwise}")
        return [(target, answer) for target, answer, error in answers if not error]

    def tell_failures(self, answers: Answers) -> int:
        """Why hosts gave no answer; the exit code."""
        for _, _, error in answers:
            if error:
                self.display.error(error)
        return self.first_failure(answers)

    @staticmethod
    def first_failure(answers: Answers) -> int:
        return next((error.exit_code for _, _, error in answers if error), 0)


def failure_row(target: Target, error: RemoteError) -> dict[str, str]:
    """For scripts, of a host that was not done."""
    return {"host": target.spec, "error": type(error).__name__, "reason": error.message}


def first_code(failed: Failed) -> int:
    return failed[0][1].exit_code if failed else 0


def raise_if_silent(answers: Answers) -> None:
    """Raises the first host's error where none has answered."""
    errors = [error for _, _, error in answers if error]
    if len(errors) == len(answers):
        raise errors[0]


KINDS = {"int | None": int, "Sequence[str]": list}
"""Kinds of options that their defaults don't tell."""


class Task(invoke.tasks.Task[Any]):
    def arg_opts(self, name: str, default: Any, taken_names: set[str]) -> dict[str, Any]:
        made: dict[str, Any] = super().arg_opts(name, default, taken_names)
        kind = KINDS.get(self.argspec(self.body).parameters[name].annotation)
        return {**made, "kind": kind, "default": None} if kind else made


def task(
    help: Mapping[str, str] | None = None,
    options: type | None = None,
    optional: Sequence[str] = (),
    server: bool = True,
) -> Callable[[Callable[..., int]], Task]:
    """A task of fab; an exit code other than 0, which its body returns, ends fab.

    The body takes the Work, then the options that `help` explains: parameters of its own, and
    `options`' fields as one record. `json` is the Work's. `server`: it can't do without one.
    """
    names = [name.replace("-", "_") for name in help or {}]
    fields = inspect.signature(options).parameters if options else {}
    json_option = inspect.Parameter("json", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False)

    def make(body: Callable[..., int]) -> Task:
        own = inspect.signature(body).parameters
        known = {"json": json_option, **fields, **own}

        @functools.wraps(body)
        def called(c: Any, *, json: bool = False, **given: Any) -> None:
            if options:
                typed = {name: given.pop(name) for name in [*given] if name not in own}
                given["options"] = options(**typed)
            name = body.__name__.replace("_", "-")
            if code := run(c, name, functools.partial(body, **given), json, server):
                sys.exit(code)

        shown = inspect.Signature([own["work"], *(known[name] for name in names)])
        called.__signature__ = shown  # type: ignore[attr-defined]
        return Task(called, help=dict(help or {}), optional=optional, auto_shortflags=False)

    return make


def run(context: Any, name: str, body: Callable[[Work], int], json: bool, server: bool) -> int:
    """The exit code. Expected errors become one line, a bug keeps its traceback.

    With REMOTE_DEBUG=1 (or fab --debug) the login's steps, the agent's operations and their times
    are told on stderr, without secrets.
    """
    from remote.screen.display import Display

    open_closed_streams()
    if os.environ.get("REMOTE_DEBUG"):
        logging.basicConfig(
            level=logging.DEBUG,
            format="%(relativeCreated)6d ms %(name)s: %(message)s",
            stream=sys.stderr,
        )
    display = Display(json_mode=json)
    try:
        work = make_work(context, name, display, server)
        if work.targets:
            display.fab = f"fab -H {work.targets[0].typed}"
        return body(work)
    except RemoteError as error:
        typed = {target.spec: target.typed for target in LINE.targets}.get(error.host or "")
        if typed:
            display.fab = f"fab -H {typed}"
        display.error(error)
        return error.exit_code
    except KeyboardInterrupt as left:
        display.interrupted(str(left) or INTERRUPTED_IN.get(name, "interrupted"))
        return INTERRUPTED
    except BrokenPipeError:
        leave_pipe()
        return 0
    finally:
        display.clear()


def make_work(context: Any, name: str, display: Display, server: bool) -> Work:
    """Raises UsageError for wrong settings, or where hosts or words are missing or too many."""
    from remote.link.session import Project
    from remote.project.settings import parse_settings, with_environment
    from remote.screen.language import choose_language
    from remote.ssh.login import each_once

    configured = context.config.get("remote") or {}
    settings = parse_settings(with_environment(configured, LINE.environment), LINE.project)
    choose_language(settings.language)
    if LINE.words and name not in ("train", "sweep"):
        raise UsageError(
            f"what follows -- belongs to train, not to {name}: {LINE.words[0]!r:.80}", step=name
        )
    typed = [complete_target(target, context, settings) for target in LINE.targets]
    targets = list(each_once(typed)) if len(typed) > 1 else typed
    if not targets and server:
        raise UsageError(f"{name} needs a server", remedy=f"fab -H user@host[:port] {name}")
    return Work(name, Project(LINE.project, settings), targets, LINE.words, display)


def complete_target(target: Target, context: Any, settings: Settings) -> Target:
    """Add what Fabric asked for by itself (a password, a passphrase, a time limit), and the
    project's settings. Raises UsageError for what is no host."""
    from remote.ssh.target import parse_spec

    parse_spec(target.spec)
    asked = dict(context.config.get("connect_kwargs") or {})
    return dataclasses.replace(
        target,
        password=asked.get("password") or target.password,
        passphrase=asked.get("passphrase") or target.passphrase,
        timeout_s=float(asked.get("timeout") or settings.timeout_s),
        stay_s=settings.stay_s,
        program=settings.ssh,
    )
