"""The system's ssh: one process per command, over one login that is kept for a while."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from remote.errors import UsageError
from remote.screen.text import one_line
from remote.ssh.connection import LOGIN_S, RESOLVE_TIMEOUT_S, Connection
from remote.ssh.process import Process
from remote.ssh.target import Host, Target, parse_spec, require_files

if TYPE_CHECKING:
    from remote.ssh.askpass import Askpass

log = logging.getLogger("remote.ssh")
LOCAL_TIMEOUT_S = 3.0
LONGEST_PLACE = 25
"""A socket's path has 103 characters on macOS; ssh adds 17 while it makes one, and we up to 35."""
ONLY_A_COMMAND = {
    "ClearAllForwardings": "yes",
    "EscapeChar": "none",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "LogLevel": "VERBOSE",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "Tunnel": "no",
}
"""Everything else is the user's own ssh_config."""
ON_TERMINAL = {"RemoteCommand": "none", "ClearAllForwardings": "yes", "LogLevel": "ERROR"}
"""What a user's ssh_config may say for logins of their own, and what would end or hang this one."""
NO_LOGIN = {"ControlMaster": "no", "ProxyCommand": "false", "BatchMode": "yes"}
"""Where the kept login refuses, ssh would log in anew, and ask again: so it gets no way there."""
NEWER = {"sessiontype": "default", "stdinnull": "no", "forkafterauthentication": "no"}
"""The same, for keywords that an older ssh would refuse."""


class OpenSSH(Connection):
    """`ssh` with the user's own settings, keys, agents, prompts and jump hosts.

    The first command logs in; where the user's ssh_config names no ControlPath, ssh keeps that
    login for `stay_s` seconds in a socket of ours, and commands that follow go over it.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        # Of the login that is kept, by us or by the user.
        self._socket = "none"
        self._asking: Askpass | None = None
        self._options: dict[str, str] = {}
        self._proxied = False
        self._running: list[Process] = []

    @property
    def method(self) -> str:  # type: ignore[override]  # known only once a command has logged in
        return next((one.log.method for one in self._running if one.log.method), "")

    @property
    def shared(self) -> bool:  # type: ignore[override]  # known only once the settings are read
        return self._socket != "none"

    def open(self) -> None:
        """Read the settings; nothing is sent yet."""
        require_files(self.target)
        found = read_settings(self.target)
        refuse_circle(self.target, found)
        user, hostname = found.get("user"), found.get("hostname")
        self.host = Host(self.target.spec, user, hostname, int(found.get("port", "22")))
        self._options = connection_options(self.target, found)
        self._socket = self._options.get("ControlPath", found.get("controlpath", "none"))
        self._proxied = goes_by_proxy(found)
        if self.target.has_secret:
            from remote.ssh.askpass import Askpass

            self._asking = Askpass(self.target, self.host)

    def start(self, command: str, beside: bool = False) -> Process:
        target, options = self.target, self._options
        if beside:
            target, options = replace(target, interactive=False), options | NO_LOGIN
            options["ControlPath"] = self._socket
        # Else ssh, where it keeps a login, throws away what a jump host or a ProxyCommand says.
        aloud = ["-v"] if self._proxied or target.only_key else []
        words = [*aloud, "-T", *as_words(options), *host_words(target), command]
        kept = self if self.shared and not beside else None
        process = Process(words, self._environment(target), self.host, target, kept)
        self._running.append(process)
        return process

    def _environment(self, target: Target) -> dict[str, str]:
        environment = dict(os.environ)
        if self._asking is not None:
            environment |= self._asking.environment()
        elif not target.can_ask:
            environment["SSH_ASKPASS_REQUIRE"] = "never"
        return environment

    def on_terminal(self, command: str) -> int:
        """Run a command at this terminal, as a person would by `ssh -t`; its exit code."""
        taken = ("Control", *NEWER)
        ours = {key: value for key, value in self._options.items() if key.startswith(taken)}
        words = ["ssh", "-t", *as_words(ours | ON_TERMINAL), *host_words(self.target), command]
        return subprocess.call(words, env=self._environment(self.target))

    def control(self, what: str, hung: bool = False) -> bool:
        """Ask the kept login's own process: check, stop or exit. `hung`: what one that does not
        answer at all counts as."""
        words = ["ssh", "-O", what, *as_words(self._options), *host_words(self.target)]
        try:
            return run_briefly(words, LOCAL_TIMEOUT_S).returncode == 0
        except subprocess.TimeoutExpired:
            return hung
        except OSError:
            return False

    def log_out(self) -> bool:
        """End the login that was kept. False where none was, or where it is the user's own."""
        return "ControlPersist" in self._options and self.control("exit")

    def replace(self) -> list[str]:
        """So that the next command logs in anew: the words it needs for that. What goes over the
        login goes on; one whose process no longer obeys loses its socket."""
        if "ControlPersist" not in self._options:
            return ["-o", "ControlPath=none"]
        if not self.control("stop"):
            with contextlib.suppress(OSError):
                os.unlink(self._socket)
        return []

    def close(self) -> None:
        for process in self._running:
            process.close()
        self._running.clear()
        if self._asking is not None:
            self._asking.close()


def host_words(target: Target) -> list[str]:
    """What `fab` was given, as ssh takes it; the host comes last."""
    spec = parse_spec(target.spec)
    words = ["-F", os.path.expanduser(target.ssh_config)] if target.ssh_config else []
    for identity in target.identities:
        words += ["-i", os.path.expanduser(identity)]
    words += ["-p", str(spec.port)] if spec.port else []
    words += ["-l", spec.user] if spec.user else []
    return [*words, "--", spec.host]


def as_words(options: Mapping[str, str]) -> list[str]:
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


def connection_options(target: Target, found: Mapping[str, str]) -> dict[str, str]:
    """What is added to the user's settings; `found` is what `ssh -G` says."""
    alive_s = max(1, int(target.timeout_s / 3))
    # Behind a proxy it bounds what somebody types there, too.
    connect_s = LOGIN_S if target.can_ask and goes_by_proxy(found) else target.timeout_s
    options = {
        **ONLY_A_COMMAND,
        **{key: value for key, value in NEWER.items() if key in found},
        "ConnectTimeout": str(math.ceil(connect_s)),
        "ServerAliveInterval": str(alive_s),
        # They bound the login, too, which may wait for a person; whoever waits for an answer later
        # gives up sooner.
        "ServerAliveCountMax": str(math.ceil(LOGIN_S / alive_s)),
    }
    if target.only_key:
        options |= {"IdentitiesOnly": "yes", "PreferredAuthentications": "publickey"}
        return options | {"ControlPath": "none"}
    if not target.can_ask and not target.has_secret:
        options["BatchMode"] = "yes"
    if os.name == "nt":
        return options  # its ssh can't share a login
    if found.get("controlpath", "none") != "none":
        # The user's own: used, and made only where it stays, and without a question. One that ends
        # with our command would take along what the user has over it.
        stays = found.get("controlpersist", "no") != "no"
        if not stays or found.get("controlmaster", "false") in ("true", "ask", "autoask"):
            options["ControlMaster"] = "no"
        return options
    path = control_path(target, found) if target.stay_s > 0 else None
    if path is None:
        return options | {"ControlPath": "none"}
    persist = str(max(1, int(target.stay_s)))
    return options | {"ControlMaster": "auto", "ControlPath": path, "ControlPersist": persist}


def goes_by_proxy(found: Mapping[str, str]) -> bool:
    return any(found.get(key, "none") != "none" for key in ("proxyjump", "proxycommand"))


def control_path(target: Target, found: Mapping[str, str]) -> str | None:
    """Where a login is kept; None where no directory is private to us.

    Its name stands for all that ssh_config and the command line say of this login; the file counts,
    too, for what it says of jump hosts.
    """
    config = os.path.abspath(os.path.expanduser(target.ssh_config)) if target.ssh_config else ""
    settings = "\n".join([config, *(f"{key} {found[key]}" for key in found if key != "host")])
    folder = private_directory()
    name = hashlib.sha256(os.fsencode(settings)).hexdigest()[:16]
    return str(folder / name) if folder else None


def private_directory() -> Path | None:
    """A path that only this user may enter, made if need be."""
    for place in (os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp"):
        folder = Path(place, f"remote-{os.getuid()}")
        # What stands for something else in ssh's ControlPath is left out.
        if not re.fullmatch(r"/[^\s%\"'\\$]*", place) or len(place) > LONGEST_PLACE:
            continue
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            about = folder.lstat()
            others = stat.S_IMODE(about.st_mode) & 0o077
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not others:
                return folder
    log.debug("no directory of our own for a kept login")
    return None


def read_settings(target: Target) -> dict[str, str]:
    """What `ssh -G` prints; of a keyword that may stand there several times, each value is a line.
    Raises UsageError."""
    host = parse_spec(target.spec).host
    words = ["ssh", "-G", "-o", "RemoteCommand=none", *host_words(target), "true"]
    try:
        done = run_briefly(words, RESOLVE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"`ssh -G {host}` did not answer for {RESOLVE_TIMEOUT_S:g} s",
            remedy="a `Match exec` in ssh_config may hang; try the command by hand",
        ) from None
    except OSError as error:
        raise UsageError(f"ssh could not be started: {error.strerror or error}") from None
    if done.returncode:
        said = one_line(done.stderr.decode("utf-8", "replace"), 300)
        text = f"ssh_config can't be read: {said or f'exit code {done.returncode}'}"
        remedy = f"try `ssh -G {target.typed_for_ssh}` by hand"
        raise UsageError(text, host=host, remedy=remedy)
    found: dict[str, str] = {}
    for line in os.fsdecode(done.stdout).splitlines():
        key, _, value = line.strip().partition(" ")
        found[key] = f"{found[key]}\n{value}" if key in found else value
    return found


def run_briefly(words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
    )


def refuse_circle(target: Target, found: Mapping[str, str]) -> None:
    """Where a jump host is reached by way of itself, as under `Host *`, ssh would start one ssh
    after another without end, and they would go on after the first was gone."""
    way = [parse_spec(target.spec).host]
    while (jump := found.get("proxyjump", "none")) != "none":
        first = jump.split(",")[0]
        way.append(parse_spec(first).host)
        if way[-1] in way[:-1]:
            raise UsageError(
                f"ProxyJump leads in a circle: {' → '.join(way)}",
                host=target.spec,
                remedy=f"in ssh_config set ProxyJump none for {way[-1]}, above the rest",
            )
        found = read_settings(replace(target, spec=first))


def identity_files(target: Target) -> list[Path]:
    """The keys that ssh would try. Empty without an ssh program."""
    found = read_settings(target).get("identityfile", "") if shutil.which("ssh") else ""
    return [Path(value.strip('"')).expanduser() for value in found.splitlines()]


def log_out(target: Target) -> bool:
    """End a kept login. False where there was none."""
    if target.program == "paramiko" or not shutil.which("ssh"):
        return False
    # One from before the setting was 0 ends, too.
    way = OpenSSH(replace(target, stay_s=target.stay_s or 1.0))
    way.open()
    return way.log_out()
