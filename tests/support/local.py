"""The agent without SSH: a connection whose commands run here, for tests of what lies above the
login."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from remote.ssh.target import Host, Target


class LocalChannel:
    def __init__(self, command: str, home: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            ["sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=home,
            env=environment,
        )

    def send(self, data: bytes | memoryview) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def receive(self, limit: int, timeout_s: float | None = None) -> bytes:
        assert self.process.stdout is not None
        return os.read(self.process.stdout.fileno(), limit)

    def errors(self) -> bytes:
        assert self.process.stderr is not None
        return self.process.stderr.read() if self.process.poll() is not None else b""

    def exit_code(self) -> int | None:
        return self.process.wait(10)

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        try:
            self.process.wait(15)
        finally:
            self.process.kill()


class LocalConnection:
    """Stands in for remote.ssh.connection.Connection."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.target = Target("local")
        self.host = Host("local", "me", "localhost", 22)
        self.environment = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
        } | environment
        self.channels: list[LocalChannel] = []

    method = ""
    shared = False

    def open(self) -> None:
        pass

    def start(self, command: str, beside: bool = False) -> LocalChannel:
        channel = LocalChannel(command, self.home, self.environment)
        self.channels.append(channel)
        return channel

    def close(self) -> None:
        for channel in self.channels:
            channel.process.kill()
            channel.process.wait()
