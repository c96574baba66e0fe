"""A real Slurm on this machine, for root: a controller and nodes with host names of their own, up
in about two seconds.

with Cluster(directory) as cluster:
    make_server(env=cluster.environment, path=sparse_path(bin, (*USUAL, *PROGRAMS)))
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from tests.support.sshd import USUAL, MakeServer, sparse_path

PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel", "sacct", "sinfo", "srun")
DAEMONS = ("munged", "slurmctld", "slurmd", "unshare")
NODE = "CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=4000"
QUICK = {"REMOTE_SLURM_EVERY_S": "1", "REMOTE_SLURM_UNKNOWN_S": "3", "REMOTE_SLURM_SETTLE_S": "2"}


def missing() -> str:
    """Why there can be no cluster here; empty: there can."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    lacking = [name for name in (*PROGRAMS, *DAEMONS) if not shutil.which(name)]
    return f"not installed: {', '.join(lacking)} (apt install slurm-wlm munge)" if lacking else ""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # munge wants a folder that everybody can enter, which pytest's own are not.
    with tempfile.TemporaryDirectory(prefix="slurm-") as place, Cluster(Path(place)) as running:
        yield running


@pytest.fixture
def login(cluster: Cluster, make_server: MakeServer, tmp_path: Path) -> Iterator[LoopbackServer]:
    """A login node without tmux."""
    usual = [name for name in USUAL if name != "tmux"]
    path = sparse_path(tmp_path / "bin", (*usual, *PROGRAMS))
    yield make_server(env={**cluster.environment, "OMP_NUM_THREADS": "1"}, path=path)
    cluster.ask("scancel -u root")


class Cluster:
    def __init__(self, directory: Path, nodes: int = 2, **settings: object) -> None:
        self.directory = directory
        self.nodes = [f"n{number + 1}" for number in range(nodes)]
        self.settings = settings
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = _free_ports(nodes + 1)

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.directory / "slurm.conf"), **QUICK}

    def __enter__(self) -> Cluster:
        for name in ("ctld", "log", "munge"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        for place in (self.directory, self.directory / "munge"):
            place.chmod(0o755)
        (self.directory / "slurm.conf").write_text(self._conf())
        lines = [f"Name=gpu Type=fake File=/dev/{name} Count=1\n" for name in ("null", "zero")]
        (self.directory / "gres.conf").write_text("".join(lines))
        self._start_munge()
        self.start("slurmctld")
        for node in self.nodes:
            self.start(node)
        ready = self._wait(lambda: self.ask("sinfo -h -N -p gpu -o %t").split().count("idle"))
        assert ready, (self.directory / "log" / "slurmctld.out").read_text()[-2000:]
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("scancel -u root")
        for name in list(self.daemons):
            self.end(name)

    def start(self, name: str) -> None:
        """slurmctld, or a node by its name."""
        conf = str(self.directory / "slurm.conf")
        argv = ["slurmctld", "-f", conf, "-D"]
        if name != "slurmctld":
            inner = f'hostname {name}; exec slurmd -f "$0" -N {name} -D'
            argv = ["unshare", "--uts", "bash", "-c", inner, conf]
        self._run(name, argv)

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        process = self.daemons.pop(name)
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def ask(self, line: str) -> str:
        """A command of Slurm's, as a person would type it here."""
        done = subprocess.run(
            line.split(), capture_output=True, text=True, env={**os.environ, **self.environment}
        )
        return done.stdout.strip()

    def jobs(self, run: str = "") -> list[tuple[str, str]]:
        """(number, state) of all our jobs, of this run alone where it is named."""
        rows = self.ask("squeue -h -t all -o %i|%T|%j").splitlines()
        cells = [row.split("|") for row in rows]
        return [(job, state) for job, state, name in cells if name.startswith(f"fab-{run}")]

    def _run(self, name: str, argv: list[str]) -> None:
        with open(self.directory / "log" / f"{name}.out", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.directory / "slurm.conf")}

    def _start_munge(self) -> None:
        """With a key and a socket of its own: one that is installed is not disturbed."""
        place = self.directory / "munge"
        key = place / "key-file"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        options = [f"--{name}={place / name}" for name in files]
        self._run("munged", ["munged", "--foreground", *options])
        assert self._wait((place / "socket").exists)

    def _wait(self, ready: object, seconds: float = 20.0) -> bool:
        assert callable(ready)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if ready():
                return True
            time.sleep(0.1)
        return False

    def _conf(self) -> str:
        here, host = self.directory, socket.gethostname()
        values: dict[str, object] = {
            "ClusterName": "mini",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": self.ports[0],
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={here}/munge/socket,cred_expire=2",
            "CredType": "cred/munge",
            "StateSaveLocation": f"{here}/ctld",
            "SlurmdSpoolDir": f"{here}/spool.%n",
            "SlurmctldPidFile": f"{here}/ctld.pid",
            "SlurmdPidFile": f"{here}/slurmd.%n.pid",
            "SlurmctldLogFile": f"{here}/log/ctld.log",
            "SlurmdLogFile": f"{here}/log/slurmd.%n.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SwitchType": "switch/none",
            "MpiDefault": "none",
            "JobAcctGatherType": "jobacct_gather/none",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": (
                "bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=0"
            ),
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "PriorityType": "priority/basic",
            "GresTypes": "gpu",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": 2,
            "SlurmdTimeout": 8,
            "SlurmctldTimeout": 8,
            "InactiveLimit": 0,
            "KillWait": 5,
            "MinJobAge": 3600,
            "OverTimeLimit": 0,
            "MessageTimeout": 10,
            "AccountingStorageType": "accounting_storage/none",
            **self.settings,
        }
        lines = [f"{key}={value}" for key, value in values.items()]
        for node, port in zip(self.nodes, self.ports[1:], strict=True):
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {NODE}"
                " Gres=gpu:fake:2 Feature=a100 State=UNKNOWN"
            )
        every = ",".join(self.nodes)
        for name, rest in (
            ("gpu", "Default=YES MaxTime=02:00:00 DefaultTime=00:10:00 PriorityTier=10"),
            ("urgent", "MaxTime=01:00:00 PriorityTier=20 PreemptMode=off"),
            ("short", "MaxTime=00:05:00 DefaultTime=00:01:00 PriorityTier=10"),
        ):
            lines.append(f"PartitionName={name} Nodes={every} State=UP {rest}")
        lines.append(f"PartitionName=closed Nodes={every} State=DOWN")
        return "\n".join([*lines, ""])


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
