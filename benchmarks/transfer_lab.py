"""What the transfer benchmark runs in: a server on loopback, a relay before it, each tool's command
line, and how a command is timed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from remote.loopback import LoopbackServer, Route, Serving  # noqa: E402  need not be installed
from tests.support.proxy import Relay  # noqa: E402
from tests.support.sshd import environment, sparse_path  # noqa: E402

MB = 1_000_000


@dataclass(frozen=True)
class Sample:
    """One measurement of one tool."""

    case: str
    link: str
    tool: str
    turn: int
    seconds: float
    rss_mb: float


@dataclass
class Plan:
    """What is measured: repeats, sizes and links."""

    repeats: int
    files: Sequence[int]
    fetch_mb: int
    memory_mb: int
    tools: Sequence[str]
    rtt_ms: float
    links: Sequence[str] = ("loopback", "relay")


@dataclass
class Lab:
    """The server, its routes and a working folder. `samples` fills as the work goes on."""

    folder: Path
    server: LoopbackServer
    routes: Mapping[str, Route]
    samples: list[Sample] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)

    def run(self, argv: Sequence[str | Path], cwd: Path, **extra: str) -> tuple[float, float]:
        """Seconds and the peak resident memory in MB of a command and what it waited for; its
        failure ends it all."""
        log = self.folder / "output"
        with log.open("wb") as out:
            home = {"HOME": str(self.folder / "client"), **extra}
            begin = time.perf_counter()
            child = subprocess.Popen(
                [str(part) for part in argv],
                cwd=cwd,
                env=environment(home),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
            _, status, usage = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            text = log.read_text(errors="replace")[-2000:]
            raise SystemExit(f"{' '.join(map(str, argv))}\nended with {child.returncode}:\n{text}")
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
        return seconds, usage.ru_maxrss * unit / MB

    def measure(
        self,
        case: str,
        link: str,
        tool: str,
        turn: int,
        argv: Sequence[str | Path],
        cwd: Path,
        **extra: str,
    ) -> None:
        seconds, rss = self.run(argv, cwd, **extra)
        self.samples.append(Sample(case, link, tool, turn, seconds, rss))
        print(f"  {case:<28} {link:<9} {tool:<6} {seconds:7.2f} s  {rss:6.0f} MB", file=sys.stderr)


# Each tool's command line, and nothing else of it.


def fab(route: Route, *arguments: str) -> list[str | Path]:
    return [
        Path(sys.executable).with_name("fab"),
        "-S",
        route.ssh_config,
        "-H",
        "loopback",
        *arguments,
    ]


def rsync(route: Route, source: str, target: str, master: Path | None) -> list[str | Path]:
    over = f" -S {master}" if master else ""
    return ["rsync", "-a", "-e", f"ssh -F {route.ssh_config}{over}", source, target]


def root(lab: Lab, place: str) -> dict[str, str]:
    return {"FABRIC_REMOTE_ROOT": str(lab.server.home / place)}


@contextmanager
def login(lab: Lab, link: str, tool: str) -> Iterator[tuple[Path | None, dict[str, str]]]:
    """rsync's master and our environment: none and FABRIC_REMOTE_STAY_S=0, or a login that
    stands."""
    if not tool.endswith("-kept"):
        yield None, {"FABRIC_REMOTE_STAY_S": "0"}
        return
    route, master = lab.routes[link], Path(tempfile.gettempdir()) / f"bench-{os.getpid()}-{link}"
    words = ["ssh", "-F", str(route.ssh_config), "-S", str(master), "loopback"]
    if tool == "rsync-kept":
        subprocess.run(
            [*words[:-1], "-M", "-N", "-f", "loopback"], check=True, stdin=subprocess.DEVNULL
        )
        yield master, {}
        subprocess.run([*words[:-1], "-O", "exit", "loopback"], capture_output=True)
        return
    keep = {"FABRIC_REMOTE_STAY_S": "60"}
    lab.run(fab(route, "status"), lab.folder / "run", **keep, **root(lab, "none"))
    yield None, keep
    lab.run(fab(route, "logout"), lab.folder / "run", **keep)


@contextmanager
def watched(lab: Lab, note: str) -> Iterator[None]:
    """Note the peak memory of any one process in the server's sessions (Linux), known by its
    HOME."""
    done, peak = threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.1):
            peak[0] = max(
                peak[0],
                *(peak_mb(path, lab.server.home) for path in Path("/proc").glob("[0-9]*")),
                0.0,
            )

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if peak[0]:
            lab.notes[note] = peak[0]


def peak_mb(process: Path, home: Path) -> float:
    try:
        if f"HOME={home}".encode() not in (process / "environ").read_bytes().split(b"\0"):
            return 0.0
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return 0.0  # it ended meanwhile, or is another user's
    return next(
        (int(line.split()[1]) * 1024 / MB for line in lines if line.startswith("VmHWM")), 0.0
    )


@contextmanager
def open_lab(plan: Plan) -> Iterator[Lab]:
    """A server with a HOME of its own and a relay before it, in a folder that is removed
    afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="transfer-")))
        (folder / "client").mkdir()
        server = stack.enter_context(
            LoopbackServer(folder / "server", Serving(path=sparse_path(folder / "bin")))
        )
        relay = stack.enter_context(Relay(server.host, server.port, latency_s=plan.rtt_ms / 2000))
        (server.home / "deploy").mkdir()
        yield Lab(folder, server, {"loopback": server.route, "relay": server.via(relay.port)})
