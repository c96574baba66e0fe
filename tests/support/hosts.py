"""Hosts on this machine, for root: network, host name, /etc/hosts and processes of their own, on
one switch. A login to one is a `LoopbackServer`'s, whose shell goes into the host.

with Hosts(directory, "ab", make_server) as hosts:
    hosts.cut("b"); hosts.kill("b")
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from remote.loopback import LoopbackServer
from tests.support.sshd import MakeServer

PROGRAMS = ("ip", "unshare", "nsenter")
ENTER = ("nsenter", "--net", "--uts", "--mount", "--pid", "--target")


def missing() -> str:
    """Why there can be none here; empty: there can."""
    if os.geteuid() != 0:
        return "hosts of one's own need root"
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    if lacking:
        return f"not installed: {', '.join(lacking)} (apt install iproute2 util-linux)"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"])
    return "the system allows no network namespaces" if tried.returncode else ""


class Hosts:
    """Each has eth0, with 10.77.0.1, 10.77.0.2, … in the order of their names."""

    def __init__(
        self, directory: Path, names: str, make_server: MakeServer, env: dict[str, str]
    ) -> None:
        self.directory, self.names = directory, names
        self.make_server, self.env = make_server, env
        self.servers: dict[str, LoopbackServer] = {}
        self.holders: dict[str, subprocess.Popen[bytes]] = {}
        self.inner: dict[str, int] = {}

    def __enter__(self) -> Hosts:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.hold("switch", "true")
        self.on("switch", "ip link add sw type bridge")
        self.on("switch", "ip link set sw up")
        for number, name in enumerate(self.names, 1):
            # As Debian writes it: a host's own name leads nowhere.
            hosts = self.directory / f"hosts-{name}"
            hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 node-{name}\n")
            own = f"mount --bind {hosts} /etc/hosts; mount -t sysfs sysfs /sys"
            self.hold(name, f"hostname node-{name}; {own}")
            self.on(
                "switch", f"ip link add to-{name} type veth peer name eth0 netns {self.inner[name]}"
            )
            self.on("switch", f"ip link set to-{name} master sw up")
            self.on(name, f"ip addr add 10.77.0.{number}/24 dev eth0")
            self.on(name, "ip link set eth0 up")
            self.on(name, "ip link set lo up")
            shell = self.directory / f"shell-{name}"
            words = " ".join([*ENTER, str(self.inner[name])])
            shell.write_text(
                f'#!/bin/sh\nexec {shutil.which("nsenter")}{words[7:]} -- $0.in "$@"\n'
            )
            inside = shell.with_name(f"{shell.name}.in")
            inside.write_text('#!/bin/sh\ncd "$HOME"; exec /bin/bash "$@"\n')
            for script in (shell, inside):
                script.chmod(0o755)
            self.servers[name] = self.make_server(env=self.env, shell=str(shell))

    def __exit__(self, *_: object) -> None:
        for name in list(self.holders):
            self.kill(name)

    def hold(self, name: str, prepare: str) -> None:
        """Processes of its own: they end with the first one."""
        inner = f"{prepare}; exec sleep 100000"
        words = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc"]
        holder = subprocess.Popen([*words, "sh", "-c", inner], stdin=subprocess.DEVNULL)
        self.holders[name] = holder
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            found = children.read_text().split()
            if found and b"sleep" in Path(f"/proc/{found[0]}/cmdline").read_bytes()[:5]:
                self.inner[name] = int(found[0])
                return
            time.sleep(0.02)
        raise AssertionError(f"{name} did not start")

    def on(self, name: str, line: str) -> None:
        """A command about its network."""
        words = ["nsenter", "--net", f"--target={self.inner[name]}", "--", *line.split()]
        subprocess.run(words, check=True)

    def cut(self, name: str) -> None:
        """Its link; logins still work."""
        self.on("switch", f"ip link set to-{name} down")

    def kill(self, name: str) -> None:
        """All of its processes at once, as when its kernel panics."""
        holder = self.holders.pop(name)
        os.kill(self.inner[name], signal.SIGKILL)
        holder.wait()
