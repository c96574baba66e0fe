"""The ways to a real sshd, by the system's ssh and by paramiko: jump hosts, a ProxyCommand, no ssh
program."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from remote.errors import AuthenticationFailed, HostKeyRefused, Unreachable, UsageError
from remote.loopback import LoopbackServer, make_key
from remote.ssh.login import connect, each_once
from remote.ssh.target import Target
from tests.support.login import join, logs_in, refusal, target, write_config
from tests.support.sshd import MakeServer

pytestmark = pytest.mark.timeout(90)


class TestWays:
    def test_through_a_jump_host(
        self, make_server: MakeServer, tmp_path: Path, program: str
    ) -> None:
        server, hop = make_server(), make_server()
        config = join(
            write_config(tmp_path, server, ProxyJump="hop"), write_config(tmp_path, hop, "hop")
        )
        assert logs_in(target(config, program=program))
        assert "127.0.0.1" in hop.log.read_text()
        Path(config).write_text(Path(config).read_text().replace("ProxyJump hop", "ProxyJump none"))
        logins = hop.log.read_text().count("Accepted")
        assert logs_in(target(config, program=program))
        assert hop.log.read_text().count("Accepted") == logins

    def test_two_jump_hosts_are_visited_in_their_order(
        self, make_server: MakeServer, tmp_path: Path, program: str
    ) -> None:
        """Each with a key of its own; only the second may go on to the server."""
        keys = [make_key(tmp_path / name) for name in ("first key", "second key")]
        server = make_server()
        second = make_server(options={"AuthorizedKeysFile": f'"{keys[1]}.pub"'})
        only = {"PermitOpen": f"127.0.0.1:{second.port}"}
        first = make_server(options={"AuthorizedKeysFile": f'"{keys[0]}.pub"', **only})
        config = join(
            write_config(tmp_path, server, ProxyJump=f"first,{second.user}@second"),
            write_config(tmp_path, first, "first", IdentityFile=f'"{keys[0]}"'),
            write_config(tmp_path, second, "second", IdentityFile=f'"{keys[1]}"'),
        )
        assert logs_in(target(config, program=program))

    def test_a_jump_host_that_reaches_nobody(
        self, make_server: MakeServer, tmp_path: Path, program: str
    ) -> None:
        server, hop = make_server(), make_server()
        config = join(
            write_config(tmp_path, server, ProxyJump="hop", Port="1"),
            write_config(tmp_path, hop, "hop"),
        )
        refused = refusal(target(config, program=program))
        assert isinstance(refused, Unreachable) and "jump host can't reach" in refused.message

    def test_the_jump_hosts_key_counts_too(
        self, make_server: MakeServer, tmp_path: Path, program: str
    ) -> None:
        server, hop = make_server(), make_server()
        unknown = write_config(tmp_path, hop, "hop", UserKnownHostsFile="/dev/null")
        config = join(write_config(tmp_path, server, ProxyJump="hop"), unknown)
        refused = refusal(target(config, program=program))
        assert isinstance(refused, HostKeyRefused)
        assert "Accepted" not in hop.log.read_text()
        if program == "paramiko":
            assert refused.host == "hop" and f"[127.0.0.1]:{hop.port}" in refused.message

    def test_a_password_is_for_the_server_alone(
        self, make_server: MakeServer, tmp_path: Path, program: str
    ) -> None:
        server, hop = make_server(password="hunter2"), make_server(password="hunter2")
        nothing = {
            "HostName": "localhost",
            "StrictHostKeyChecking": "no",
            "IdentityFile": "none",
            "PreferredAuthentications": "password",
        }
        config = join(
            write_config(tmp_path, server, ProxyJump="hop"),
            write_config(tmp_path, hop, "hop", **nothing),
        )
        refused = refusal(target(config, password="hunter2", program=program))
        assert isinstance(refused, AuthenticationFailed), refused
        if program == "paramiko":
            assert refused.host == "hop" and "fab -H hop " in str(refused)

    def test_a_proxy_command(self, server: LoopbackServer, tmp_path: Path, program: str) -> None:
        relay = tmp_path / "relay.py"
        relay.write_text(
            "import socket, sys, threading, os\n"
            "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
            "def up():\n"
            "    while d := os.read(0, 65536): s.sendall(d)\n"
            "threading.Thread(target=up, daemon=True).start()\n"
            "while d := s.recv(65536): os.write(1, d)\n"
        )
        config = write_config(tmp_path, server, ProxyCommand=f"python3 {relay} %h %p; true")
        assert logs_in(target(config, program=program))
        broken = write_config(tmp_path, server, ProxyCommand="exit 3")
        assert isinstance(refusal(target(broken, program=program)), Unreachable)

    def test_a_loop_of_jump_hosts_is_refused(
        self, server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        config = write_config(tmp_path, server, ProxyJump="box")
        refused = refusal(target(config, program=program))
        assert isinstance(refused, UsageError), refused
        assert "ProxyJump leads in a circle" in refused.message

    def test_without_an_ssh_program(
        self, server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = write_config(tmp_path, server)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert logs_in(target(config))
        asked = refusal_of(lambda: connect(target(config, program="openssh")))
        assert isinstance(asked, UsageError) and "no ssh program" in asked.message


def refusal_of(act: object) -> BaseException:
    with pytest.raises(UsageError) as found:
        act()  # type: ignore[operator]
    return found.value


def test_a_host_that_is_named_twice_is_one(tmp_path: Path) -> None:
    """Also by what ssh_config says anyway; another user or port is another login."""
    if not shutil.which("ssh"):
        pytest.skip("there is no ssh program")
    config = tmp_path / "config"
    config.write_text("Host a\n  User me\n  Port 2200\nHost b\n  User me\n")

    def once(*specs: str) -> list[str]:
        given = [Target(spec, ssh_config=str(config)) for spec in specs]
        return [target.spec for target in each_once(given)]

    assert once("a", "a", "me@a", "a:2200", "b", "me@b:22") == ["a", "b"]
    assert once("b", "you@b", "b:23", "a", "[bad", "[bad") == ["b", "you@b", "b:23", "a", "[bad"]
