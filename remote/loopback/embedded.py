"""An SSH server of Python alone, for machines without sshd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote.errors import ServerUnfit
from remote.loopback.accounts import HOST, START_TIMEOUT_S, Keys, Session

if TYPE_CHECKING:
    import asyncssh


CHUNK = 256 * 1024


class Embedded:
    """For machines without sshd: asyncssh in a thread, running real commands.

    As with sshd, a command without a terminal outlives its connection and notices only that its
    pipes are closed. It knows no SFTP, no forwarding and no terminals; a request for a terminal
    gets pipes.
    """

    kind = "embedded"

    def __init__(self, session: Session, keys: Keys, log: Path, password: str | None) -> None:
        self._session, self._keys, self._log, self._password = session, keys, log, password
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._children: set[Process] = set()

    def open(self) -> int:
        try:
            import asyncssh  # noqa: F401  only to say early and clearly that it is missing
        except ImportError:
            raise ServerUnfit(
                "neither OpenSSH's sshd nor the package asyncssh is installed",
                host=HOST,
                step="loopback server",
                remedy="pip install asyncssh",
            ) from None
        self._attach_log()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._turn, name="loopback-embedded", daemon=True)
        self._thread.start()
        self._acceptor = self.run(self._listen())
        return int(self._acceptor.get_port())

    def close(self) -> None:
        if not hasattr(self, "_thread"):
            return
        self.run(self._shut())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        logging.getLogger("asyncssh").removeHandler(self._handler)
        self._handler.close()

    def _turn(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(START_TIMEOUT_S)

    def _attach_log(self) -> None:
        self._handler = logging.FileHandler(self._log)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger = logging.getLogger("asyncssh")
        logger.addHandler(self._handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # it has a file of its own; a demo's terminal is not the place

    async def _listen(self) -> asyncssh.SSHAcceptor:
        import asyncssh

        return await asyncssh.create_server(
            make_policy(self._connections, self._session.account.name, self._password),
            HOST,
            0,
            server_host_keys=[str(self._keys.host)],
            authorized_client_keys=f"{self._keys.user}.pub",
            process_factory=self._serve,
            encoding=None,
            line_editor=False,
            window=8 * 1024 * 1024,
            max_pktsize=64 * 1024,
        )

    async def abort(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    async def _shut(self) -> None:
        self._acceptor.close()
        await self.abort()
        await self._acceptor.wait_closed()
        own = asyncio.current_task()
        rest = [task for task in asyncio.all_tasks() if task is not own]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for child in list(
            self._children
        ):  # asyncio can't let go of a child; what it started with setsid lives on
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            # Before the wait: what the child has started may hold the other ends, and wait() waits
            # for them, too.
            _hang_up(child, 0, 1, 2)
            await child.wait()
        await asyncio.sleep(0)  # closed pipes need one more turn of the loop

    async def _serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """One command: pipes between the channel and the child, then its exit status or signal."""
        child = await self._spawn(process)
        self._children.add(child)
        stdin = asyncio.ensure_future(_feed(process, child))
        try:
            await asyncio.gather(_drain(child, 1, process.stdout), _drain(child, 2, process.stderr))
            status = await child.wait()
        finally:
            stdin.cancel()
        self._children.discard(child)
        with contextlib.suppress(OSError):  # the client may be gone
            if status < 0:
                process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
            else:
                process.exit(status)

    async def _spawn(self, process: asyncssh.SSHServerProcess[bytes]) -> Process:
        session = self._session
        client = process.get_extra_info("peername")
        environ = {
            **session.environ(),
            "USER": session.account.name,
            "LOGNAME": session.account.name,
            "SHELL": session.shell,
            "SSH_CLIENT": (  # by it bash knows a login by SSH
                f"{client[0]} {client[1]} {self._acceptor.get_port()}"
            ),
        }
        argv = (
            [session.shell, "-c", process.command]
            if process.command is not None
            else [session.shell, "-l"]
        )
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            cwd=session.home,
            env=environ,
            start_new_session=True,
            limit=CHUNK,
        )


async def _feed(process: asyncssh.SSHServerProcess[bytes], child: Process) -> None:
    """Pass the client's bytes and signals on to the child, until either end closes."""
    import asyncssh

    assert child.stdin
    with contextlib.suppress(OSError, ProcessLookupError, asyncssh.Error):
        while True:
            try:
                data = await process.stdin.read(CHUNK)
            except asyncssh.SignalReceived as request:
                os.killpg(child.pid, signal.Signals[f"SIG{request.signal}"])
                continue
            except asyncssh.TerminalSizeChanged:
                continue
            if not data:
                break
            child.stdin.write(data)
            await child.stdin.drain()
    child.stdin.close()


async def _drain(child: Process, number: int, target: asyncssh.SSHWriter[bytes]) -> None:
    """Copy what the child says on descriptor 1 or 2; when the client is gone, close it: so the
    child learns of it."""
    source = child.stdout if number == 1 else child.stderr
    assert source
    while data := await source.read(CHUNK):
        try:
            target.write(data)
            await target.drain()
        except OSError:
            _hang_up(child, number)
            return


def _hang_up(child: Process, *numbers: int) -> None:
    """Close our ends of the child's pipes; asyncio's Process has no public way to do it."""
    for number in numbers:
        pipe = child._transport.get_pipe_transport(number)  # type: ignore[attr-defined]
        if pipe:
            pipe.close()


def make_policy(
    connections: set[asyncssh.SSHServerConnection], user: str, password: str | None
) -> Any:
    """A server class for asyncssh: one account, its key, and its password if there is one."""
    import asyncssh

    class Policy(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self._conn = conn
            connections.add(conn)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.discard(self._conn)

        def password_auth_supported(self) -> bool:
            return password is not None

        def validate_password(self, username: str, given: str) -> bool:
            return password is not None and (username, given) == (user, password)

        async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            return False  # only the authorized key counts

        def begin_auth(self, username: str) -> bool:
            return True

    return Policy
