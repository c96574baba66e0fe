"""Answers ssh's questions with the password and the passphrase that `fab` was given, each of them
once."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Listener
from pathlib import Path

from remote.errors import UsageError
from remote.screen.language import translate
from remote.screen.text import printable
from remote.ssh.target import Host, Target

ADDRESS = "REMOTE_ASKPASS"
HELPER = (
    "import os, sys; from multiprocessing.connection import Client; "
    f'peer = Client(os.environ["{ADDRESS}"], "AF_UNIX"); peer.send(sys.argv[1]); answer ='
    " peer.recv(); "
    "sys.exit(1) if answer is None else print(answer)"
)
"""What ssh runs: its question goes to the program that started ssh, and the answer to ssh."""
WORD = (
    "(?:password|passwort|passwd|mot de passe|contraseña|senha|wachtwoord|lösenord|hasło|пароль"
    "|パスワード|암호|密码|密碼)"
)
"""As PAM asks for it in the language of the server."""
PASSWORD = re.compile(
    r"(?:\(?[^()]+@(?P<host>[^@()]+?)(?:'s |\) ?))?(?:(?:please )?enter |请输入)?(?:your )?"
    rf"(?:(?:login|unix|ldap|kerberos|domain) )?{WORD}(?: for (?:\S+@(?P<own>[^\s@:]+)|[^\s@:]+))?"
    r"\s?[:：]\s*",
    re.I,
)
"""The prompt for the password and for nothing else: one for a code may end with the same word."""
PASSPHRASE = re.compile(r"passphrase for (?:key )?'?(?P<path>[^':]+)", re.I)


class Answers:
    """What was given for a host, each of it once; then what a person types."""

    def __init__(self, target: Target, host: Host) -> None:
        self._target, self._host = target, host
        self.used: set[str] = set()
        self.asked = False

    def answer(self, prompt: str, echo: bool = False) -> str | None:
        what, given = self._given(prompt)
        if given is not None and what not in self.used:
            self.used.add(what)
            return given
        self.asked = self._target.can_ask
        return ask_person(prompt, echo) if self.asked else None

    def reply(self, title: str, text: str, prompts: Sequence[tuple[str, bool]]) -> list[str]:
        """To all that a server asks at once, as paramiko hands it over; nothing where nobody is
        here."""
        for told in filter(None, (title, text) if self._target.can_ask else ()):
            sys.stderr.write(printable(told).rstrip() + "\n")
        who = f"({self._host.user}@{self._host.hostname}) "
        return [self.answer(who + printable(prompt), echo) or "" for prompt, echo in prompts]

    def _given(self, prompt: str) -> tuple[str, str | None]:
        """What it is called and is: a passphrase is that of one key, and the prompt names it."""
        if PASSPHRASE.search(prompt):
            return prompt, self._target.passphrase
        found = PASSWORD.fullmatch(prompt)
        asks = found and (found["host"] or found["own"])
        hostname = self._host.hostname or ""
        ours = (None, self._host.name.rpartition("@")[2], hostname, hostname.lower())
        return "password", self._target.password if found and asks in ours else None


class Askpass(Answers):
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
        super().__init__(target, host)
        # A socket's path has 103 characters on macOS, 15 of them from here on.
        short = None if len(tempfile.gettempdir()) <= 88 else "/tmp"
        self._folder = Path(tempfile.mkdtemp(prefix="fab-", dir=short))  # 0700
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

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._listener.close()


def ask_person(prompt: str, echo: bool = False) -> str | None:
    import getpass

    try:
        if echo or re.search(r"\(yes/no", prompt):
            sys.stderr.write(translate(prompt))
            sys.stderr.flush()
            return sys.stdin.readline().strip() or None
        with restored_terminal():
            return getpass.getpass(translate(prompt), stream=sys.stderr)
    except EOFError:
        return None


@contextlib.contextmanager
def restored_terminal() -> Iterator[None]:
    """Also where a thread asks, which the program's end leaves where it is."""
    if os.name == "nt" or not sys.stdin.isatty():
        yield
        return
    import termios

    usual = termios.tcgetattr(sys.stdin)
    restore = functools.partial(termios.tcsetattr, sys.stdin, termios.TCSANOW, usual)
    atexit.register(restore)
    try:
        yield
    finally:
        atexit.unregister(restore)
