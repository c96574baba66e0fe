"""The machine's own sshd behind the server on loopback."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from remote.errors import ServerUnfit
from remote.loopback.accounts import HOST, START_TIMEOUT_S, Keys, Session, find_sshd, quote

SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
)


class OpenSSH:
    """The machine's sshd, one process per connection (`sshd -i`), as socket activation does it.

    That way the port is ours from the first moment (no search for a free one), nothing is left
    listening when this process dies, and every process to end is a child that we know by pid.
    """

    kind = "OpenSSH sshd"

    def __init__(
        self, directory: Path, session: Session, keys: Keys, log: Path, options: Mapping[str, str]
    ) -> None:
        self._config = directory / "sshd_config"
        self._entry = directory / "session.sh"
        self._session, self._keys, self._log, self._options = session, keys, log, options
        self._children: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def open(self) -> int:
        authorized = self._config.with_name("authorized_keys")
        authorized.write_bytes(Path(f"{self._keys.user}.pub").read_bytes())
        authorized.chmod(0o644)  # sshd reads it as the account that logs in
        self._entry.write_text(render_entry(self._session.shell))
        self._entry.chmod(0o755)
        self._config.write_text(
            render_sshd_config(self._session, self._keys, authorized, self._entry, self._options)
        )
        self._sshd = find_sshd() or "sshd"
        _check_config(self._sshd, self._config)
        self._output: IO[bytes] = self._log.open("ab")
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._accept, name="loopback-sshd", daemon=True)
        self._thread.start()
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._woken in ready:
                    return
                with contextlib.suppress(OSError):  # the client may be gone already
                    self._serve(self._listener.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        command = [self._sshd, "-i", "-e", "-f", str(self._config)]
        # A session of its own: Ctrl-C at our terminal is not for it, and its group is sshd's
        # processes and no others (sshd puts the user's commands into new sessions).
        with client:
            end, log = client.fileno(), self._output
            child = subprocess.Popen(
                command, stdin=end, stdout=end, stderr=log, start_new_session=True, cwd="/", env={}
            )
        with self._lock:
            self._children = [*(old for old in self._children if old.poll() is None), child]

    def send(self, number: signal.Signals) -> list[subprocess.Popen[bytes]]:
        with self._lock:
            alive = [child for child in self._children if child.poll() is None]
        for child in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, number)
        return alive

    def drop(self) -> None:
        for child in self.send(signal.SIGKILL):
            child.wait()

    def close(self) -> None:
        if not hasattr(self, "_thread"):
            return
        self._wake.send(b"x")
        self._thread.join()
        for end in (self._listener, self._wake, self._woken):
            end.close()
        deadline = time.monotonic() + 1.0
        for child in self.send(signal.SIGTERM):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
        self.drop()
        self._output.close()


def _check_config(sshd: str, config: Path) -> None:
    """`sshd -t` tells what is wrong before anybody connects; as root it also wants its empty
    directory to exist."""
    for _ in range(2):
        test = subprocess.run(
            [sshd, "-t", "-f", str(config)], capture_output=True, text=True, timeout=START_TIMEOUT_S
        )
        missing = re.search(r"Missing privilege separation directory: (\S+)", test.stderr)
        if test.returncode == 0:
            return
        if not missing or os.geteuid() != 0:
            break
        os.makedirs(missing[1], mode=0o755, exist_ok=True)
    raise ServerUnfit(
        f"sshd refuses its configuration: {test.stderr.strip()}", host=HOST, step="loopback server"
    )


def render_sshd_config(
    session: Session, keys: Keys, authorized: Path, entry: Path, options: Mapping[str, str]
) -> str:
    """sshd takes the first value that it sees, so `options` come first."""
    sftp = next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), None)
    settings = [
        *options.items(),
        ("HostKey", quote(keys.host)),
        ("AuthorizedKeysFile", quote(authorized, percent=True)),
        ("AllowUsers", session.account.name),
        ("PermitRootLogin", "prohibit-password"),
        ("PasswordAuthentication", "no"),
        ("KbdInteractiveAuthentication", "no"),
        ("UsePAM", "no"),
        ("StrictModes", "no"),  # the directory may lie below a shared /tmp
        ("UseDNS", "no"),
        ("PrintMotd", "no"),
        ("PrintLastLog", "no"),
        ("PidFile", "none"),
        ("MaxSessions", "100"),
        ("LogLevel", "VERBOSE"),
        ("SetEnv", " ".join(quote(f"{name}={value}") for name, value in session.environ().items())),
        ("ForceCommand", shlex.quote(str(entry))),
        *([("Subsystem", f"sftp {sftp}")] if sftp and "Subsystem" not in options else []),
    ]
    return "".join(f"{name} {value}\n" for name, value in settings)


def render_entry(shell: str) -> str:
    """Start the command in HOME: sshd would start it in the account's own home, whatever HOME says.

    The outer login shell has read its start-up files already; a SHLVL keeps bash from reading them
    a second time.
    """
    return f"""#!/bin/sh
cd "$HOME" || exit 1
SHLVL=1; export SHLVL
if [ -z "${{SSH_ORIGINAL_COMMAND+set}}" ]; then exec {shlex.quote(shell)} -l; fi
line=$SSH_ORIGINAL_COMMAND
unset SSH_ORIGINAL_COMMAND
exec {shlex.quote(shell)} -c "$line"
"""
