"""Which host keys paramiko trusts: those of known_hosts, and new ones that a person accepts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

import paramiko

from remote.errors import HostKeyRefused
from remote.ssh.askpass import ask_person
from remote.ssh.target import Target

_accepted: dict[str, bytes] = {}
"""Keys that a person accepted in this process."""


class Strict(paramiko.MissingHostKeyPolicy):
    """Asks a person about a key that known_hosts does not hold, or refuses it."""

    def __init__(self, target: Target, settings: Mapping[str, str]) -> None:
        self._target = target
        self._mode = settings.get("stricthostkeychecking", "ask").lower()
        users = settings.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")
        system = settings.get("globalknownhostsfile", "/etc/ssh/ssh_known_hosts")
        # Paramiko takes the quotes off: what follows a blank is another file where it begins like a
        # path.
        named = [*re.split(r" (?=[~/])", users), system]
        self._files = [Path(name.strip('"')).expanduser() for name in named]
        self._text = ""
        for file in self._files:
            with contextlib.suppress(OSError):
                self._text += file.read_text("utf-8", "replace") + "\n"

    def apply(self, client: paramiko.SSHClient) -> None:
        """Let this decide for the client."""
        client.set_missing_host_key_policy(self)
        if "@revoked" not in self._text:  # paramiko passes over these: every key is ours to check
            self._load(client.get_host_keys())

    def _load(self, keys: paramiko.HostKeys) -> paramiko.HostKeys:
        for file in self._files:
            # A line that can't be read hides those behind it: they count as unknown.
            with contextlib.suppress(OSError, UnicodeDecodeError, paramiko.hostkeys.InvalidHostKey):
                keys.load(str(file))
        return keys

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        """Return where the key may be trusted. Raises HostKeyRefused."""
        # Whatever host the line is about.
        if re.search(rf"(?m)^@revoked.*\s{re.escape(key.get_base64())}(\s|$)", self._text):
            raise self._refused("the server's key is revoked", "ask whoever runs the server")
        known = self._load(paramiko.HostKeys()).get(hostname)
        if known is not None:
            if known.get(key.get_name()) == key:
                return
            raise self.changed(hostname, key)
        if _accepted.get(hostname) == key.asbytes() or self._mode in ("no", "off"):
            return
        kind = f"{key.get_name()} {key.fingerprint}"
        question = f"{hostname} is not known here; its key is {kind}. Go on? (yes/no) "
        if self._mode != "accept-new" and (self._mode == "yes" or not self._accepts(question)):
            certified = "@cert-authority" in self._text
            note = " (certificates of hosts need the ssh program)" if certified else ""
            raise self._refused(
                f"the server's key is not known here: {hostname}, {kind}{note}",
                "compare the fingerprint with the server's own, then accept it at a terminal",
            )
        _accepted[hostname] = key.asbytes()
        with contextlib.suppress(OSError):
            self._files[0].parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._files[0].open("a") as out:
                out.write(f"{hostname} {key.get_name()} {key.get_base64()}\n")

    def _accepts(self, question: str) -> bool:
        return self._target.can_ask and ask_person(question) in ("y", "yes")

    def changed(self, hostname: str, key: paramiko.PKey) -> HostKeyRefused:
        return self._refused(
            f"the server's key has CHANGED ({hostname}, {key.get_name()} {key.fingerprint})",
            f"if it was reinstalled, take its line out of {self._files[0]}",
        )

    def _refused(self, text: str, remedy: str) -> HostKeyRefused:
        return HostKeyRefused(text, host=self._target.spec, remedy=remedy)
