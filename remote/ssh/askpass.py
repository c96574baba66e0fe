"""Answers ssh's questions with the password and the passphrase that `fab` was given, each of them
once."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
import tempfile
import threading
from multiprocessing.connection import Listener
from pathlib import Path

from remote.errors import UsageError
from remote.screen.language import translate
from remote.ssh.target import Host, Target

ADDRESS = "REMOTE_ASKPASS"
HELPER = (
    "import os, sys; from multiprocessing.connection import Client; "
    f'peer = Client(os.environ["{ADDRESS}"], "AF_UNIX"); peer.send(sys.argv[1]); answer ='
    " peer.recv(); "
    "sys.exit(1) if answer is None else print(answer)"
)
"""What ssh runs: its question goes to the program that started ssh, and the answer to ssh."""
PASSWORD = re.compile(
    r"(?:\(?(?P<user>[^()]+)@(?P<host>[^@()]+?)(?:'s |\) ?))?[^:]{0,20}password: ?\Z", re.I
)
"""A prompt for the password alone: one for a code that has the word in it is longer, and is not
answered."""
NOT_IT = re.compile(r"one.?time|\botp\b|token|code|new|verif|change", re.I)
PASSPHRASE = re.compile(r"passphrase for (?:key )?'?(?P<path>[^':]+)", re.I)


class Askpass:
    """Listens where only this user can connect; ssh's helper sends the question and takes the
    answer back.

    Nothing secret stands on a command line, in the environment or in a file.
    """

    def __init__(self, target: Target, host: Host) -> None:
        if os.name == "nt":
            text = "a password given to fab can't be passed on to Windows' ssh"
            raise UsageError(
                text, host=host.name, remedy="let ssh ask for it, or set remote.ssh to paramiko"
            )
        self._target, self._host = target, host
        self._answered: set[str] = set()
        self._folder = Path(tempfile.mkdtemp(prefix="fab-"))  # 0700
        self._helper = self._folder / "ask"
        self._helper.write_text(
            f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -c '{HELPER}' \"$1\"\n"
        )
        self._helper.chmod(0o700)
        self._listener = Listener(str(self._folder / "s"), "AF_UNIX")
        threading.Thread(target=self._serve, daemon=True).start()

    def environment(self) -> dict[str, str]:
        return {
            "SSH_ASKPASS": str(self._helper),
            "SSH_ASKPASS_REQUIRE": "force",
            "DISPLAY": os.environ.get("DISPLAY", ":"),
            ADDRESS: str(self._folder / "s"),
        }

    def _serve(self) -> None:
        while True:
            try:
                with self._listener.accept() as peer:
                    peer.send(self.answer(peer.recv()))
            except (EOFError, OSError):
                if not self._folder.exists():
                    return

    def answer(self, prompt: str) -> str | None:
        """What was given, where the prompt asks for just that and for the first time; else what a
        person types."""
        wanted = self._given(prompt)
        if wanted is not None and prompt not in self._answered:
            self._answered.add(prompt)
            return wanted
        return ask_person(prompt) if self._target.can_ask else None

    def _given(self, prompt: str) -> str | None:
        if PASSPHRASE.search(prompt):
            return self._target.passphrase
        found = PASSWORD.search(prompt)
        if not found or NOT_IT.search(prompt):
            return None
        ours = {
            self._host.name.rpartition("@")[2],
            (self._host.hostname or "").lower(),
            self._host.hostname,
        }
        return self._target.password if found["host"] is None or found["host"] in ours else None

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._listener.close()


def ask_person(prompt: str) -> str | None:
    import getpass

    try:
        if re.search(r"\(yes/no", prompt):
            sys.stderr.write(translate(prompt))
            sys.stderr.flush()
            return sys.stdin.readline().strip() or None
        return getpass.getpass(translate(prompt), stream=sys.stderr)
    except EOFError:
        return None
