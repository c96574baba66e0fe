"""An SSH server on 127.0.0.1 for `fab demo` and the tests: the machine's own OpenSSH sshd, else an
embedded one.

Everything it needs and writes lies in one directory: keys, known_hosts, ssh_config, log and the
HOME of its sessions. It listens on 127.0.0.1 only, on a port that the system chooses, and stops
with the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from remote.errors import ServerUnfit
from remote.loopback.accounts import (
    HOST,
    START_TIMEOUT_S,
    Account,
    Backend,
    Keys,
    Route,
    Serving,
    Session,
    make_key,
    make_keys,
    render_ssh_config,
    why_not_sshd,
)
from remote.loopback.embedded import Embedded
from remote.loopback.openssh import OpenSSH

__all__ = ["Keys", "LoopbackServer", "Route", "Serving", "make_key", "make_keys"]


class LoopbackServer:
    """`with LoopbackServer(directory) as server:` serves logins until the block ends.

    Once open: `host, port, user, identity, known_hosts, ssh_config` (together: `route`), `log`,
    `kind`.
    """

    host = HOST
    port: int
    kind: str
    user: str
    route: Route
    identity: Path
    known_hosts: Path
    ssh_config: Path

    def __init__(self, directory: Path | str, serving: Serving | None = None) -> None:
        self.serving = serving or Serving()
        self.directory = Path(directory).absolute()
        self.home = (self.serving.home or self.directory / "home").absolute()
        given = self.serving.path
        self.path = os.environ.get("PATH", os.defpath) if given is None else given
        self.log = self.directory / "log"
        self._keys = self.serving.keys
        self.backend: Backend | None = None

    def __enter__(self) -> LoopbackServer:
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self) -> None:
        """Make what is missing, start to serve and wait for an SSH banner; errors carry the log's
        end."""
        account = Account.find(self.serving.user)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._keys = self._keys or make_keys(self.directory / "keys")
        shell = self.serving.shell or account.shell
        session = Session(account, self.home, self.path, self.serving.env, shell)
        self.backend = self._choose(session, self._keys)
        try:
            self.kind, self.port, self.user = self.backend.kind, self.backend.open(), account.name
            self.route = self._write_route(self.port, self.directory)
            self.known_hosts, self.ssh_config = self.route.known_hosts, self.route.ssh_config
            self.identity = self.route.identity
            self._await_banner(self.port)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening and end the sessions' sshd processes; what a session left running on
        purpose (tmux) lives."""
        backend, self.backend = self.backend, None
        if backend:
            backend.close()

    def via(self, port: int) -> Route:
        """The same login through a relay that listens on `port` of 127.0.0.1, with files of its
        own."""
        directory = self.directory / f"via-{port}"
        directory.mkdir(exist_ok=True)
        return self._write_route(port, directory)

    def log_tail(self) -> str:
        """The end of the server's log, for error messages and failed tests."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def _choose(self, session: Session, keys: Keys) -> Backend:
        password, options = self.serving.password, self.serving.options
        is_embedded = self.serving.embedded or password is not None
        if not is_embedded and why_not_sshd(session.account) is None:
            return OpenSSH(self.directory, session, keys, self.log, options)
        if options:
            raise ValueError("the embedded SSH server knows no sshd_config options")
        return Embedded(session, keys, self.log, password)

    def _write_route(self, port: int, directory: Path) -> Route:
        assert self._keys is not None
        key = Path(f"{self._keys.host}.pub").read_text().split()
        known_hosts = directory / "known_hosts"
        known_hosts.write_text(f"[{HOST}]:{port} {key[0]} {key[1]}\n")
        route = Route(HOST, port, self.user, self._keys.user, known_hosts, directory / "ssh_config")
        route.ssh_config.write_text(render_ssh_config(route))
        return route

    def _await_banner(self, port: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((HOST, port), START_TIMEOUT_S) as client,
            ):
                if client.recv(4) == b"SSH-":
                    return
                break  # it answered, and not with a banner: it won't get better
            time.sleep(0.02)
        raise ServerUnfit(
            f"the SSH server on loopback does not answer; its log ends with:\n{self.log_tail()}",
            host=HOST,
            step="loopback server",
        )
