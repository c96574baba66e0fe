"""One task's way to one server: the login, the agent on it, and what is known of project and
settings."""

from __future__ import annotations

import functools
import getpass
import hashlib
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from remote.errors import ConnectionLost, StartsOrEnds, Unreachable
from remote.link.agent_program import agent_hash
from remote.link.answer import A, Owned
from remote.link.link import Link, OnEvent, Upload
from remote.project.own_trainer import runs_own_trainer
from remote.project.results import pending_in
from remote.records import Release, Settings
from remote.release.git import project_identity
from remote.release.release import build_release
from remote.screen.display import Display
from remote.ssh.connection import Connection
from remote.ssh.login import connect
from remote.ssh.target import Target

log = logging.getLogger("remote.link")
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Between attempts to come back; the last one repeats."""
WORKED_S = 30.0
"""A connection that held so long is a new beginning."""
T = TypeVar("T")


def who_am_i() -> str:
    """Shown to whoever waits for us: user and computer."""
    try:
        return f"{getpass.getuser()}@{platform.node()}"
    except (KeyError, OSError, ImportError):
        return platform.node() or "somebody"


@dataclass(frozen=True)
class Project:
    """The project here."""

    directory: Path
    settings: Settings

    @functools.cached_property
    def identity(self) -> str | None:
        """Its first commit, and its folder in the repository; None without git."""
        return project_identity(self.directory)

    @property
    def has_own_trainer(self) -> bool:
        return runs_own_trainer(self.settings.command, self.directory)

    @property
    def dest(self) -> Path:
        return self.directory / self.settings.dest

    def build_release(self) -> Release:
        """Raises UsageError."""
        settings = self.settings
        limit, include = settings.max_file_mib, settings.include
        return build_release(self.directory, limit, include, settings.dest)


class Session:
    """Logs in and starts the agent at the first call; a call after `close` does so again. `with`
    closes at the end."""

    def __init__(self, target: Target, project: Project, display: Display) -> None:
        self.target = target
        self.project = project
        self.display = display
        self.connection: Connection | None = None
        self.link: Link | None = None
        self.requests = 0
        # Its agent was heard once: what is wrong now may mend itself.
        self.was_there = False
        # Ctrl-C was typed while a run was watched.
        self.interrupted = False
        # Behind `fab -H`, where its host is one of several for the same run.
        self.together: str | None = None

    @property
    def host(self) -> str:
        return self.target.spec

    @property
    def typed(self) -> str:
        return self.together or self.target.typed

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self) -> None:
        if self.link is not None:
            return
        began = time.monotonic()
        # What moves would hide a question of the login.
        self.display.clear()
        self.connection = connect(self.target)
        self.connection.open()
        log.debug("%s: settings read after %.3f s", self.host, time.monotonic() - began)
        try:
            self.link = self._agent(new_there=not self._keeps_agent())
            self.link.__enter__()
        except BaseException:
            self.close()
            raise

    def log_in(self) -> None:
        """`open`, and wait for an answer: whatever the login asks has been asked then, and nothing
        that is drawn hides it."""
        from remote.link.answers import Runs

        self.ask(Runs)

    @property
    def can_widen(self) -> bool:
        """Whether one login carries several commands."""
        return self.connection is not None and self.connection.shared

    def lane(self) -> Link:
        """One more agent over the login that stands, for what goes side by side."""
        return self._agent(beside=True)

    def _agent(self, **how: bool) -> Link:
        assert self.connection is not None
        settings = self.project.settings
        return Link(self.connection, settings.root, settings.python, **how)

    @property
    def _memory(self) -> Path:
        """Holds the hash of the agent that this server keeps; worth one round trip, and nothing if
        it is wrong."""
        key = hashlib.sha256(
            f"{self.host}\0{self.project.settings.root}".encode("utf-8", "surrogateescape")
        ).hexdigest()[:24]
        return self.project.dest / ".pending" / f"{key}.agent"

    def _keeps_agent(self) -> bool:
        try:
            return self._memory.read_text() == agent_hash()
        except (OSError, ValueError):
            return False

    def remember_agent(self) -> None:
        """Called once something was done that keeps the agent there."""
        if not self._keeps_agent():
            try:
                pending_in(self.project.dest)
                self._memory.write_text(agent_hash())
            except OSError:
                pass

    def close(self) -> None:
        if self.link is not None:
            self.requests += self.link.requests
            self.link.__exit__()
            self.link = None
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def patiently(self, ask: Callable[[], T], stays: str, tries: int | None = None) -> T:
        """`ask()`, and again after each lost connection; `tries` bounds that, None: for as long as
        it takes. `stays` is told each time. A server that was never there, or whose agent was
        never heard, is told at once.

        What is asked must be the same when it is asked twice.
        """
        failed = 0
        while True:
            began = time.monotonic()
            try:
                return ask()
            except (ConnectionLost, Unreachable, StartsOrEnds) as error:
                self.close()
                silent = isinstance(error, ConnectionLost) and error.silent
                self.was_there |= not (silent or isinstance(error, Unreachable))
                failed = 1 if time.monotonic() - began > WORKED_S else failed + 1
                if not self.was_there or (tries is not None and failed >= tries):
                    raise
                pause = PAUSES_S[min(failed, len(PAUSES_S)) - 1]
                ends = "" if tries else " (Ctrl-C ends this, and nothing else)"
                self.display.note(f"{error.message}; {stays}. Trying again in {pause:.0f} s{ends}")
                time.sleep(pause)

    def ask(
        self,
        kind: type[A],
        on_event: OnEvent | None = None,
        upload: Upload | None = None,
        **args: Any,
    ) -> A:
        """Ask the agent about this project's root."""
        self.open()
        assert self.link is not None
        link, settings = self.link, self.project.settings
        args["root"] = settings.root
        if issubclass(kind, Owned):
            args |= {"project": settings.project, "identity": self.project.identity}
        try:
            return link.ask(kind, on_event, upload, **args)
        finally:
            self.was_there |= link.heard
