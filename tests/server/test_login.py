"""Logging in to a real sshd, by the system's ssh and by paramiko: channels, and one clear line for
each refusal."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from remote.errors import (
    AuthenticationFailed,
    ConnectionLost,
    HostKeyRefused,
    ServerUnfit,
    Unreachable,
    UsageError,
)
from remote.loopback import LoopbackServer, make_key
from remote.ssh.login import connect
from remote.ssh.target import Target
from tests.support.login import forget_logins, logs_in, refusal, says, target, write_config
from tests.support.proxy import Relay
from tests.support.sshd import MakeServer

pytestmark = pytest.mark.timeout(90)


class TestChannel:
    def test_output_errors_and_exit_code_are_apart(
        self, each_server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        with connect(target(write_config(tmp_path, each_server), program=program)) as connection:
            assert (connection.host.user, connection.host.port) == (
                each_server.user,
                each_server.port,
            )
            channel = connection.start("cat; echo bad >&2; exit 7")
            channel.send(b"abc")
            assert channel.receive(2) == b"ab" and channel.receive(10) == b"c"
            channel.close()
            channel = connection.start("echo bad >&2; exit 7")
            assert channel.receive(10) == b"" and channel.exit_code() == 7
            assert b"bad\n" in channel.errors()
            channel = connection.start("exit 255")
            assert channel.receive(10) == b"" and channel.exit_code() == 255

    def test_much_stderr_blocks_nothing_and_is_bounded(
        self, server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        with connect(target(write_config(tmp_path, server), program=program)) as connection:
            channel = connection.start("head -c 30000000 /dev/zero >&2; echo done")
            assert channel.receive(10) == b"done\n" and len(channel.errors()) <= 65536

    def test_data_arrives_unchanged_both_ways_and_senders_do_not_mix(
        self, each_server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        block = os.urandom(1 << 20)
        with connect(target(write_config(tmp_path, each_server), program=program)) as connection:
            channel = connection.start("cat")
            senders = [
                threading.Thread(target=channel.send, args=(memoryview(block),)) for _ in range(8)
            ]
            for sender in senders:
                sender.start()
            for _ in senders:
                received = bytearray()
                while len(received) < len(block):
                    received += channel.receive(len(block) - len(received))
                assert received == block

    def test_an_unread_flood_waits_on_the_server(
        self, server: LoopbackServer, tmp_path: Path
    ) -> None:
        if not shutil.which("ssh"):
            pytest.skip("there is no ssh program")
        with connect(target(write_config(tmp_path, server))) as connection:
            channel = connection.start("head -c 200000000 /dev/zero")
            time.sleep(1.5)
            held = channel._output.queue  # type: ignore[attr-defined]
            assert sum(map(len, held)) <= 6 << 20
            total = 0
            while data := channel.receive(1 << 20):
                total += len(data)
            assert total == 200_000_000

    def test_a_frozen_link_ends_every_wait(
        self, server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        with Relay(server.host, server.port) as relay:
            config = through(relay, server, tmp_path)
            with connect(target(config, timeout_s=1.0, program=program)) as connection:
                channel = connection.start("cat")
                channel.send(b"x")
                assert channel.receive(1) == b"x"
                relay.stall = "both"
                begun = time.monotonic()
                with pytest.raises(ConnectionLost, match="no answer for 1 s"):
                    channel.receive(1)
                with pytest.raises(ConnectionLost):
                    channel.send(bytes(100 << 20))
                assert time.monotonic() - begun < 20

    def test_a_cut_is_never_an_end_of_output(
        self, server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        with (
            Relay(server.host, server.port) as relay,
            connect(target(through(relay, server, tmp_path), program=program)) as connection,
        ):
            channel = connection.start("head -c 100000000 /dev/zero; sleep 60")
            relay.cut_after(1_000_000, "down")
            with pytest.raises(ConnectionLost):
                while channel.receive(1 << 20):
                    pass
            assert channel.exit_code() is None


def through(relay: Relay, server: LoopbackServer, tmp_path: Path) -> str:
    return write_config(
        tmp_path,
        server,
        Port=str(relay.port),
        StrictHostKeyChecking="no",
        UserKnownHostsFile="/dev/null",
    )


@pytest.mark.parametrize("count", [0, 10, 500, 1000, 1300, 1600])
def test_a_cut_during_the_login_is_one_line(
    server: LoopbackServer, tmp_path: Path, count: int, program: str
) -> None:
    with Relay(server.host, server.port) as relay:
        config = through(relay, server, tmp_path)
        relay.cut_after(count, "down")
        refused = refusal(target(config, timeout_s=2.0, program=program))
        assert isinstance(refused, Unreachable | ConnectionLost | AuthenticationFailed)


class TestKeys:
    def test_a_key_of_the_command_line(
        self, server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        config = write_config(tmp_path, server, IdentityFile=str(make_key(tmp_path / "other")))
        assert isinstance(refusal(target(config, program=program)), AuthenticationFailed)
        assert logs_in(target(config, identities=(str(server.identity),), program=program))

    def test_a_missing_key_or_configuration_is_named(
        self, server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        config = write_config(tmp_path, server)
        assert isinstance(
            refusal(target(config, identities=("/nowhere",), program=program)), UsageError
        )
        assert isinstance(refusal(target(str(tmp_path / "none"), program=program)), UsageError)

    @pytest.mark.needs("ssh")
    def test_a_broken_configuration_is_named(self, server: LoopbackServer, tmp_path: Path) -> None:
        config = write_config(tmp_path, server)
        Path(config).write_text("Host box\n  NoSuchOption yes\n")
        refused = refusal(target(config))
        assert isinstance(refused, UsageError) and "line 2" in refused.message

    @pytest.mark.needs("ssh-keygen")
    def test_a_passphrase_of_the_command_line(
        self, server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        config = write_config(tmp_path, server, IdentityFile=str(lock(server, tmp_path)))
        assert logs_in(target(config, passphrase="secret", program=program))
        forget_logins()
        refused = refusal(target(config, passphrase="wrong", program=program))
        assert isinstance(refused, AuthenticationFailed) and "wrong" not in str(refused)
        assert isinstance(refusal(target(config, program=program)), AuthenticationFailed)

    def test_a_password_of_the_command_line(
        self, make_server: MakeServer, tmp_path: Path, program: str
    ) -> None:
        server = make_server(password="hunter2")
        for methods in ("password", "keyboard-interactive"):
            config = write_config(
                tmp_path, server, IdentityFile="none", PreferredAuthentications=methods
            )
            with connect(target(config, password="hunter2", program=program)) as connection:
                assert says(connection) == b"hello\n"
                assert connection.method == ("password" if program == "paramiko" else methods)
        forget_logins()
        begun = time.monotonic()
        refused = refusal(target(config, password="hunter3", program=program))
        assert isinstance(refused, AuthenticationFailed) and "hunter" not in str(refused)
        assert isinstance(refusal(target(config, program=program)), AuthenticationFailed)
        assert time.monotonic() - begun < 20


def lock(server: LoopbackServer, tmp_path: Path) -> Path:
    """The server's user key behind the passphrase `secret`."""
    import subprocess

    file = tmp_path / "locked"
    shutil.copy(server.identity, file)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-N", "secret", "-f", file], check=True, capture_output=True
    )
    return file


class TestHostKeys:
    def known(
        self, tmp_path: Path, server: LoopbackServer, text: str, **options: str
    ) -> tuple[str, Path]:
        file = tmp_path / "known hosts"
        file.write_text(text)
        return write_config(tmp_path, server, UserKnownHostsFile=f'"{file}"', **options), file

    def other(self, tmp_path: Path) -> str:
        return " ".join(Path(f"{make_key(tmp_path / 'another')}.pub").read_text().split()[:2])

    def test_an_unknown_key_is_refused_where_nobody_can_be_asked(
        self, server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        config, file = self.known(tmp_path, server, "")
        refused = refusal(target(config, program=program))
        assert (
            isinstance(refused, HostKeyRefused)
            and "not known here" in refused.message
            and file.read_text() == ""
        )

    def test_a_changed_key_is_refused(
        self, server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        text = f"[127.0.0.1]:{server.port} {self.other(tmp_path)}\n"
        config, file = self.known(tmp_path, server, text)
        refused = refusal(target(config, program=program))
        assert (
            isinstance(refused, HostKeyRefused)
            and "CHANGED" in refused.message
            and "127.0.0.1" in str(refused)
            and file.read_text() == text
        )

    def test_a_revoked_key_is_refused(
        self, server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        name, key = (
            f"[127.0.0.1]:{server.port}",
            " ".join(server.known_hosts.read_text().split()[1:3]),
        )
        config, _ = self.known(tmp_path, server, f"{name} {key}\n@revoked * {key}\n")
        refused = refusal(target(config, program=program))
        assert isinstance(refused, HostKeyRefused) and "revoked" in refused.message

    def test_a_changed_key_is_refused_whatever_else_is_revoked(
        self, server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        other = self.other(tmp_path)
        text = f"[127.0.0.1]:{server.port} {other}\n@revoked * {other}\n"
        config, _ = self.known(tmp_path, server, text, StrictHostKeyChecking="accept-new")
        refused = refusal(target(config, program=program))
        assert isinstance(refused, HostKeyRefused) and "CHANGED" in refused.message

    def test_a_new_key_is_taken_where_that_is_allowed(
        self, server: LoopbackServer, tmp_path: Path, program: str
    ) -> None:
        config, file = self.known(
            tmp_path, server, "", StrictHostKeyChecking="accept-new", HashKnownHosts="no"
        )
        assert (
            logs_in(target(config, program=program))
            and f"[127.0.0.1]:{server.port} ssh-ed25519" in file.read_text()
        )
        assert logs_in(target(config.replace("accept-new", "yes"), program=program))


class TestSilence:
    def goal(self, port: int, tmp_path: Path, program: str, timeout_s: float = 1.0) -> Target:
        (tmp_path / "empty").write_text(
            "Host *\n  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking no\n"
        )
        return Target(
            f"me@127.0.0.1:{port}",
            ssh_config=str(tmp_path / "empty"),
            timeout_s=timeout_s,
            interactive=False,
            program=program,
        )

    def test_nobody_listens(self, tmp_path: Path, program: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            refused = refusal(self.goal(sock.getsockname()[1], tmp_path, program))
        assert isinstance(refused, Unreachable) and "refuses connections" in refused.message

    def test_a_name_that_nobody_knows(self, tmp_path: Path, program: str) -> None:
        goal = Target(
            "no-such-host.invalid",
            ssh_config=self.goal(1, tmp_path, program).ssh_config,
            interactive=False,
            program=program,
        )
        refused = refusal(goal)
        assert isinstance(refused, Unreachable) and "not known" in refused.message

    @pytest.mark.parametrize("words", [b"", b"SSH-2.0-Silent\r\n"])
    def test_a_silent_server(self, tmp_path: Path, words: bytes, program: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            held = []

            def accept() -> None:
                held.append(listener.accept()[0])
                held[0].sendall(words)

            threading.Thread(target=accept, daemon=True).start()
            begun = time.monotonic()
            refused = refusal(self.goal(listener.getsockname()[1], tmp_path, program))
            assert isinstance(refused, Unreachable | ConnectionLost), refused
            assert time.monotonic() - begun < 12

    @pytest.mark.parametrize(
        "words", [b"Exceeded MaxStartups\r\n", b"", b"HTTP/1.1 400 Bad\r\n" * 5000]
    )
    def test_a_server_that_hangs_up(self, tmp_path: Path, words: bytes, program: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def accept() -> None:
                with listener.accept()[0] as sock:
                    sock.recv(100)
                    sock.sendall(words)

            threading.Thread(target=accept, daemon=True).start()
            refused = refusal(self.goal(listener.getsockname()[1], tmp_path, program))
            assert isinstance(refused, Unreachable) and "before the login" in str(refused), refused


class TestConfigurationOfParamiko:
    @pytest.mark.parametrize(
        "line", ["HostKeyAlias other", "IdentityAgent ~/a.sock", "IdentityFile ~/.ssh/%n"]
    )
    def test_what_it_lacks_is_named(
        self, server: LoopbackServer, tmp_path: Path, line: str
    ) -> None:
        key, value = line.split()
        refused = refusal(
            target(write_config(tmp_path, server, **{key: value}), program="paramiko")
        )
        assert isinstance(refused, UsageError) and "needs the ssh program" in refused.message
        assert key.lower() in refused.message and value[1:] in refused.message

    def test_one_method_more_is_no_hindrance(self, server: LoopbackServer, tmp_path: Path) -> None:
        """As the ssh_config of Debian and Ubuntu names it."""
        config = write_config(tmp_path, server, GSSAPIAuthentication="yes")
        assert logs_in(target(config, program="paramiko"))

    @pytest.mark.needs("ssh-agent", "ssh-add")
    def test_the_agent_is_used_unless_there_shall_be_none(
        self, server: LoopbackServer, tmp_path: Path, agent: Path
    ) -> None:
        subprocess.run(["ssh-add", "-q", server.identity], check=True)
        usual = {"IdentityFile": "none", "IdentitiesOnly": "no"}
        assert logs_in(target(write_config(tmp_path, server, **usual), program="paramiko"))
        config = write_config(tmp_path, server, **usual, IdentityAgent="none")
        assert isinstance(refusal(target(config, program="paramiko")), AuthenticationFailed)

    def test_files_that_are_included(
        self, server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        whole = Path(write_config(tmp_path, server, Port=""))
        folder = tmp_path / ".ssh/conf.d"
        folder.mkdir(parents=True)
        (folder / "0").write_text(f"{whole.read_text()}  Include none/*\n  User {server.user}\n")
        (folder / "1").write_text("Host box\n  User nobody\nHost other\n  Port 1\n")
        config = tmp_path / "config"
        config.write_text(f"Include = conf.d/*\nPort {server.port}\n")
        assert logs_in(target(str(config), program="paramiko"))
        config.write_text(f"Host other\n  Include {folder}/1\n{whole.read_text()}")
        refused = refusal(target(str(config), program="paramiko"))
        assert isinstance(refused, UsageError) and "Include under Host other" in refused.message

    def test_a_match_that_hangs(
        self, server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("remote.ssh.fallback.RESOLVE_TIMEOUT_S", 0.5)
        config = Path(write_config(tmp_path, server))
        config.write_text(f'Match exec "sleep 5"\n  User me\n{config.read_text()}')
        begun = time.monotonic()
        refused = refusal(target(str(config), program="paramiko"))
        assert isinstance(refused, UsageError) and "Match exec" in refused.message
        assert time.monotonic() - begun < 4


def test_a_server_that_allows_one_session(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server(options={"MaxSessions": "0"})
    refused = refusal(target(write_config(tmp_path, server), program="paramiko"))
    assert isinstance(refused, ServerUnfit) and "MaxSessions" in str(refused)
