"""`tensorboard`: a run's logs, mirrored here and served on this computer alone; a dropped link is
bridged by the mirror."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import webbrowser
from pathlib import Path

from remote.errors import UsageError
from remote.link.session import Session
from remote.watching.watch import mirror

EVERY_S = 15.0
START_S = 60.0
HOST = "127.0.0.1"


def serve(session: Session, run: str, dest: Path, port: int, browser: bool) -> int:
    """Until Ctrl-C, which leaves nothing running here; the mirror stays."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "tensorboard is not installed here",
            step="tensorboard",
            remedy="pip install tensorboard",
        )
    board: subprocess.Popen[bytes] | None = None
    ended = False
    try:
        for fetched in mirror(session, run, dest, EVERY_S):
            if board is None:
                # A project of somebody else writes its events where it likes.
                logs = fetched.path / "logs" if session.project.has_own_trainer else fetched.path
                board, address = start(logs, fetched.run.run, port)
                session.display.line(
                    f"{fetched.run.run}: {address} (Ctrl-C ends it, not the training)"
                )
                if browser and session.display.live:
                    webbrowser.open(address)
        ended = True
        session.display.note("the run has ended and is here completely; Ctrl-C ends TensorBoard")
        session.close()
        assert board is not None
        return board.wait()
    except KeyboardInterrupt:
        goes_on = "" if ended else "the training goes on, and "
        session.display.interrupted(f"ended; {goes_on}what was mirrored stays")
        return 0
    finally:
        if board is not None:
            end(board)


def start(logs: Path, run: str, port: int) -> tuple[subprocess.Popen[bytes], str]:
    """The process and its address. Raises UsageError where it does not come up."""
    port = port or free_port()
    logs.mkdir(parents=True, exist_ok=True)
    options = [*logs_option(logs, run), "--window_title", run]
    options += ["--host", HOST, "--port", str(port), "--reload_interval", "5"]
    # A file, not a pipe: it warns for hours, and would stand still once a pipe is full.
    with tempfile.TemporaryFile() as errors:
        # A session of its own: Ctrl-C is for us, and we end it.
        board = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        address = f"http://{HOST}:{port}/"
        if answers(board, address):
            return board, address
        end(board)
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip()
    last = said.splitlines()[-1][:300] if said else "it said nothing"
    raise UsageError(f"tensorboard did not start: {last}", step="tensorboard", remedy="--port N")


def answers(board: subprocess.Popen[bytes], address: str) -> bool:
    """Waits for its first answer."""
    deadline = time.monotonic() + START_S
    while board.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def logs_option(logs: Path, run: str) -> list[str]:
    """Shown under the run's name, which a path that holds TensorBoard's separators rules out."""
    named = not set(",:") & set(str(logs))
    return ["--logdir_spec", f"{run}:{logs}"] if named else ["--logdir", str(logs)]


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def end(board: subprocess.Popen[bytes]) -> None:
    board.terminate()
    try:
        board.wait(5)
    except subprocess.TimeoutExpired:
        board.kill()
        board.wait()
