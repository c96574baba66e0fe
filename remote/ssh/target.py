"""Which host, and how `fab` was told to reach it."""

from __future__ import annotations

import dataclasses
import getopt
import ipaddress
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from remote.errors import UsageError
from remote.screen.text import one_line

DEFAULT_TIMEOUT_S = 30.0
IN_NO_NAME = re.compile(r"^-|[\s\x00-\x1f\x7f'\"`$;&|<>(){}]")
"""A leading dash would be an option to ssh; the others could end up in a command."""

HALF_WIDTH = str.maketrans("：，＠．", ":,@.")


@dataclass(frozen=True)
class Target:
    """One host as typed, with what Fabric's command line said about it."""

    spec: str
    identities: tuple[str, ...] = ()
    ssh_config: str | None = None
    password: str | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)
    # The longest wait for any single answer of the network.
    timeout_s: float = DEFAULT_TIMEOUT_S
    # Whether somebody can be asked; None: when stdin is a terminal.
    interactive: bool | None = None
    # For how long a login is kept for the next command; 0: not at all.
    stay_s: float = 0.0
    # "openssh", "paramiko", or "auto": the system's ssh where there is one.
    program: str = "auto"
    # By the key of -i or not at all, to see whether it is let in.
    only_key: bool = False

    @property
    def typed(self) -> str:
        """As a shell takes it behind `fab -H`, with -i and -S, for what people are told to type."""
        return " ".join([shlex.quote(self.spec), *self._options("-S")])

    @property
    def typed_for_ssh(self) -> str:
        """The same behind `ssh`."""
        spec = parse_spec(self.spec)
        port = [f"-p {spec.port}"] if spec.port else []
        host = f"{spec.user}@{spec.host}" if spec.user else spec.host
        return " ".join([*self._options("-F"), *port, shlex.quote(host)])

    def _options(self, config: str) -> list[str]:
        options = [f"-i {shlex.quote(path)}" for path in self.identities]
        return options + ([f"{config} {shlex.quote(self.ssh_config)}"] if self.ssh_config else [])

    @property
    def has_secret(self) -> bool:
        return self.password is not None or self.passphrase is not None

    @property
    def can_ask(self) -> bool:
        if self.interactive is not None:
            return self.interactive
        return bool(sys.stdin and sys.stdin.isatty())


def typed_together(targets: Sequence[Target]) -> str:
    """Several hosts as they stand behind `fab -H`; -i and -S are the same for all."""
    first = targets[0]
    hosts = ",".join(target.spec for target in targets)
    return dataclasses.replace(first, spec=hosts).typed


@dataclass(frozen=True)
class Host:
    """Who is at the other end; `name` is what the user typed. The rest is what ssh_config makes of
    it."""

    name: str
    user: str | None = None
    hostname: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class Spec:
    """A host as typed, taken apart."""

    host: str
    user: str | None = None
    port: int | None = None


def parse_spec(text: str) -> Spec:
    """Take apart `user@host:port`, `alias`, `[::1]:2222`, `user@fe80::1%eth0` or
    `ssh://user@host:port`.

    Raises UsageError for anything else.
    """
    user, at, rest = text.strip().removeprefix("ssh://").rstrip("/").rpartition("@")
    if (half := text.translate(HALF_WIDTH)) != text:
        remedy = f"type -H {half} in its place"
        raise UsageError(f"{one_line(text, 100)!r} has full-width signs", remedy=remedy)
    host, port = _split_port(rest)
    names = [host, user] if at else [host]
    is_named = all(name and not IN_NO_NAME.search(name) for name in names)
    is_one = not re.search(r"[\\*?!,]", host)  # no pattern, and no list
    is_port = port is None or (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536)
    if not (is_named and is_one and is_port):
        remedy = pasted(text) or "write user@host, user@host:port or [address]:port"
        shown = re.sub(":.*@", ":…@", one_line(text, 100))  # may be a password
        raise UsageError(f"{shown!r} names no host", remedy=remedy)
    if ":" in user:
        text = "-H names no password: it would be seen by others"
        remedy = f"write -H {user.partition(':')[0]}@{rest}: it is asked for; setup-key ends that"
        raise UsageError(text, remedy=remedy)
    return Spec(host, user or None, int(port) if port else None)


def pasted(text: str) -> str | None:
    """How a command for ssh is written here; None: it is none, or more than a host, port and
    key."""
    try:
        words = shlex.split(text.strip().removeprefix("ssh "))
        options, names = getopt.gnu_getopt(words, "46ACNTXYfqtvL:R:D:i:l:o:p:")
        (name,) = names
        if name == text:
            return None
        spec = parse_spec(name)
    except (ValueError, getopt.GetoptError, UsageError):
        return None
    given = dict(options)
    ports = [value[5:] for _, value in options if value.lower().startswith("port=")]
    port = given.get("-p") or "".join(ports) or spec.port
    user = given.get("-l") or spec.user
    host = f"[{spec.host}]" if ":" in spec.host else spec.host
    key = f" -i {shlex.quote(given['-i'])}" if "-i" in given else ""
    typed = f"{f'{user}@' if user else ''}{host}{f':{port}' if port else ''}{key}"
    return f"type -H {typed} in its place"


def require_files(target: Target) -> None:
    """Raises UsageError where a key or an ssh_config that was named on the command line is
    missing."""
    for path in filter(None, [*target.identities, target.ssh_config]):
        if not os.path.isfile(os.path.expanduser(path)):
            text = f"there is no file {path!r}"
            remedy = "-i takes a private key, -S an ssh_config"
            raise UsageError(text, host=target.spec, remedy=remedy)


def _split_port(text: str) -> tuple[str, str | None]:
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", text)
    if bracketed:
        return bracketed[1], bracketed[2]
    if text.count(":") > 1:
        try:
            ipaddress.IPv6Address(text)
        except ValueError:
            return "", None
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None
