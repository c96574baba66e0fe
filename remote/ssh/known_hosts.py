"""Which host keys paramiko trusts: those of known_hosts, and new ones that a person accepts."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from remote.errors import HostKeyRefused
from remote.ssh.askpass import ask_person
from remote.ssh.target import Target

if TYPE_CHECKING:
    import paramiko

ASK_THEM = "ask whoever runs the server"
_accepted: dict[str, bytes] = {}
"""Keys that a person accepted in this process."""


class Strict:
    """Paramiko's policy for a key that known_hosts does not hold: ask a person, or refuse."""

    def __init__(self, target: Target, settings: Mapping[str, str]) -> None:
        self._target = target
        self._mode = settings.get("stricthostkeychecking", "ask").lower()
        named = settings.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")
        # Paramiko takes the quotes off: what follows a blank is another file where it begins like a
        # path.
        users = [os.path.expanduser(part.strip('"')) for part in re.split(r" (?=[~/])", named)]
        self._files = [*users, settings.get("globalknownhostsfile", "/etc/ssh/ssh_known_hosts")]

    def apply(self, client: paramiko.SSHClient) -> None:
        """Let this decide for the client."""
        client.set_missing_host_key_policy(self)  # type: ignore[arg-type]  # has the method that is called
        if not self._marked("@revoked"):  # paramiko passes over these: every key is ours to check
            self._load(client.get_host_keys())

    def _load(self, keys: paramiko.HostKeys) -> paramiko.HostKeys:
        import paramiko

        for file in self._files:
            # A line that can't be read hides those behind it: they count as unknown.
            with contextlib.suppress(OSError, UnicodeDecodeError, paramiko.hostkeys.InvalidHostKey):
                keys.load(file)
        return keys

    def _marked(self, marker: str) -> list[list[str]]:
        lines: list[str] = []
        for file in self._files:
            with contextlib.suppress(OSError):
                lines += Path(file).read_text("utf-8", "replace").splitlines()
        return [line.split() for line in lines if line.startswith(marker)]

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        """Return where the key may be trusted. Raises HostKeyRefused."""
        import paramiko

        # Whatever host the line is about.
        if any(key.get_base64() in line for line in self._marked("@revoked")):
            raise self._refused("the server's key is revoked", ASK_THEM)
        known = self._load(paramiko.HostKeys()).get(hostname)
        if known is not None:
            if known.get(key.get_name()) == key:
                return
            raise self.changed(key)
        if _accepted.get(hostname) == key.asbytes() or self._mode in ("no", "off"):
            return
        shown = f"{key.get_name()} {key.fingerprint}"
        question = f"{hostname} is not known here; its key is {shown}. Go on? (yes/no) "
        if self._mode != "accept-new" and (self._mode == "yes" or not self._accepts(question)):
            certified = bool(self._marked("@cert-authority"))
            note = " (certificates of hosts need the ssh program)" if certified else ""
            raise self._refused(
                f"the server's key is not known here: {shown}{note}",
                "compare the fingerprint with the server's own, then accept it at a terminal",
            )
        _accepted[hostname] = key.asbytes()
        with contextlib.suppress(OSError):
            file = Path(self._files[0])
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with file.open("a") as out:
                out.write(f"{hostname} {key.get_name()} {key.get_base64()}\n")

    def _accepts(self, question: str) -> bool:
        return self._target.can_ask and ask_person(question) in ("y", "yes")

    def changed(self, key: paramiko.PKey) -> HostKeyRefused:
        return self._refused(
            f"the server's key has CHANGED ({key.get_name()} {key.fingerprint})",
            f"if it was reinstalled, take its line out of {self._files[0]}",
        )

    def _refused(self, text: str, remedy: str) -> HostKeyRefused:
        return HostKeyRefused(text, host=self._target.spec, remedy=remedy)
