"""Logging in to a real sshd: channels, keys, passwords, and one clear line for each refusal."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from remote.errors import AuthenticationFailed, ConnectionLost, ServerUnfit, Unreachable, UsageError
from remote.loopback import LoopbackServer, make_key
from remote.ssh import identities
from remote.ssh.connection import Connection, Target
from tests.support.login import Answers, forget_secrets, logs_in, refusal, says, target, write_config
from tests.support.proxy import Relay
from tests.support.sshd import MakeServer

pytestmark = [pytest.mark.timeout(90), pytest.mark.skipif(not shutil.which("ssh"), reason="ssh_config is asked from ssh")]


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_secrets(monkeypatch)


class TestChannel:
    def test_output_errors_and_exit_code_are_apart(self, each_server: LoopbackServer, tmp_path: Path) -> None:
        with Connection(target(write_config(tmp_path, each_server))) as connection:
            assert (connection.host.user, connection.host.port) == (each_server.user, each_server.port)
            channel = connection.start("cat; echo bad >&2; exit 7")
            channel.send(b"abc")
            assert channel.receive(2) == b"ab" and channel.receive(10) == b"c"
            channel.close()
            channel = connection.start("echo bad >&2; exit 7")
            assert channel.receive(10) == b"" and channel.exit_code() == 7
            assert b"bad\n" in channel.errors()

    def test_a_signal_is_no_lost_connection(self, server: LoopbackServer, tmp_path: Path) -> None:
        with Connection(target(write_config(tmp_path, server))) as connection:
            channel = connection.start("kill -9 $$")
            assert channel.receive(10) == b"" and channel.exit_code() == 137

    def test_much_stderr_blocks_nothing_and_is_bounded(self, server: LoopbackServer, tmp_path: Path) -> None:
        with Connection(target(write_config(tmp_path, server))) as connection:
            channel = connection.start("head -c 60000000 /dev/zero >&2; echo done")
            assert channel.receive(10) == b"done\n" and len(channel.errors()) == 65536

    def test_data_arrives_unchanged_both_ways_and_pings_do_not_mix(self, each_server: LoopbackServer, tmp_path: Path) -> None:
        block = os.urandom(1 << 20)
        with Connection(target(write_config(tmp_path, each_server))) as connection:
            channel = connection.start("cat")
            senders = [threading.Thread(target=channel.send, args=(memoryview(block),)) for _ in range(8)]
            for sender in senders:
                sender.start()
            for _ in senders:
                received = bytearray()
                while len(received) < len(block):
                    received += channel.receive(len(block) - len(received))
                assert received == block

    def test_an_unread_flood_stays_in_the_window(self, server: LoopbackServer, tmp_path: Path) -> None:
        with Connection(target(write_config(tmp_path, server))) as connection:
            channel = connection.start("head -c 200000000 /dev/zero")
            time.sleep(1.5)
            held = sum(map(len, channel._stream._chunks))
            assert held <= 24 << 20
            total = 0
            while data := channel.receive(1 << 20):
                total += len(data)
            assert total == 200_000_000

    def test_two_commands_on_one_login(self, each_server: LoopbackServer, tmp_path: Path) -> None:
        with Connection(target(write_config(tmp_path, each_server))) as connection:
            assert says(connection, "echo one") == b"one\n" and says(connection, "echo two") == b"two\n"


class TestKeys:
    def test_a_key_of_the_command_line_goes_first(self, server: LoopbackServer, tmp_path: Path) -> None:
        config = write_config(tmp_path, server, IdentityFile=str(make_key(tmp_path / "other")))
        assert logs_in(target(config, identities=(str(server.identity),)))
        with pytest.raises(UsageError, match="does not exist"):
            Connection(target(config, identities=("/nowhere",))).open()

    @pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
    def test_other_kinds_of_keys(self, make_server: MakeServer, tmp_path: Path, kind: str) -> None:
        from remote.loopback import make_keys

        server = make_server(keys=make_keys(tmp_path / kind, kind, kind))
        assert logs_in(target(write_config(tmp_path, server)))

    def lock(self, server: LoopbackServer, tmp_path: Path, *form: str) -> str:
        """The server's user key behind the passphrase `secret`."""
        file = tmp_path / "locked"
        shutil.copy(server.identity, file)
        subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", *form, "-f", file], check=True, capture_output=True)
        return str(file)

    def test_a_passphrase_is_asked_for_at_most_three_times_and_once_per_process(
        self, server: LoopbackServer, tmp_path: Path
    ) -> None:
        goal = target(write_config(tmp_path, server, IdentityFile=self.lock(server, tmp_path)), interactive=True)
        wrong = Answers("a", "b", "c")
        refused = refusal(goal, wrong)
        assert isinstance(refused, AuthenticationFailed) and "passphrase" in refused.message and len(wrong.asked) == 3
        right = Answers("a", "secret")
        assert logs_in(goal, right) and len(right.asked) == 2
        assert logs_in(goal, Answers())

    def test_a_passphrase_can_be_given_and_is_named_where_nobody_can_be_asked(
        self, server: LoopbackServer, tmp_path: Path
    ) -> None:
        config = write_config(tmp_path, server, IdentityFile=self.lock(server, tmp_path))
        refused = refusal(target(config))
        assert isinstance(refused, AuthenticationFailed) and "nobody can be asked" in str(refused)
        assert logs_in(target(config, passphrase="secret"))

    def test_a_missing_key_is_passed_over_and_a_refused_one_is_named(self, server: LoopbackServer, tmp_path: Path) -> None:
        other = make_key(tmp_path / "other")
        config = tmp_path / "config"
        config.write_text(
            Path(write_config(tmp_path, server, IdentityFile="/nowhere/key")).read_text() + f"  IdentityFile {other}\n"
        )
        config.write_text(config.read_text().replace(f'  IdentityFile "{server.identity}"\n', ""))
        refused = refusal(target(str(config)))
        assert isinstance(refused, AuthenticationFailed)
        assert (
            str(other) in refused.message and "the server accepts publickey" in refused.message and "ssh-copy-id" in str(refused)
        )

    def test_no_key_at_all(self, server: LoopbackServer, tmp_path: Path) -> None:
        assert "no key to try" in str(refusal(target(write_config(tmp_path, server, IdentityFile="none"))))

    def test_a_certificate_is_offered_with_its_key(self, make_server: MakeServer, tmp_path: Path) -> None:
        authority, user = make_key(tmp_path / "authority"), make_key(tmp_path / "user")
        (tmp_path / "ca.pub").write_bytes(Path(f"{authority}.pub").read_bytes())
        server = make_server(options={"TrustedUserCAKeys": str(tmp_path / "ca.pub")})
        config = write_config(tmp_path, server, IdentityFile=str(user))
        assert isinstance(refusal(target(config)), AuthenticationFailed)
        sign = ["ssh-keygen", "-q", "-s", authority, "-I", "me", "-n", server.user, f"{user}.pub"]
        subprocess.run([*map(str, sign)], check=True, capture_output=True)
        assert logs_in(target(config))


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ssh-agent of the test's own."""
    if not shutil.which("ssh-agent"):
        pytest.skip("there is no ssh-agent")
    path = Path("/tmp") / f"agent-{os.getpid()}-{time.monotonic_ns()}"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    while not path.exists():
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    process.terminate()
    process.wait()


class TestAgent:
    def add(self, *keys: Path) -> None:
        subprocess.run(["ssh-add", "-q", *keys], check=True, capture_output=True)

    def test_a_key_of_the_agent_logs_in(self, server: LoopbackServer, tmp_path: Path, agent: Path) -> None:
        self.add(server.identity)
        config = Path(write_config(tmp_path, server))
        config.write_text(config.read_text().replace(str(server.identity), "/nowhere"))
        assert logs_in(target(str(config)))
        config.write_text(config.read_text() + "  IdentitiesOnly yes\n")
        assert isinstance(refusal(target(str(config))), AuthenticationFailed)
        config.write_text(config.read_text().replace("IdentitiesOnly yes", "IdentityAgent none"))
        assert isinstance(refusal(target(str(config))), AuthenticationFailed)

    def test_a_public_key_file_chooses_one_of_the_agent(self, server: LoopbackServer, tmp_path: Path, agent: Path) -> None:
        self.add(server.identity)
        config = Path(write_config(tmp_path, server, IdentitiesOnly="yes"))
        shutil.copy(f"{server.identity}.pub", tmp_path / "chosen.pub")
        for name in ("chosen.pub", "chosen"):
            chosen = config.read_text().replace(f'"{server.identity}"', str(tmp_path / name))
            (tmp_path / "chosen_config").write_text(chosen)
            assert logs_in(target(str(tmp_path / "chosen_config")))

    def test_many_keys_of_the_agent_leave_room_for_the_named_one(
        self, server: LoopbackServer, tmp_path: Path, agent: Path
    ) -> None:
        self.add(*(make_key(tmp_path / f"key{number}") for number in range(8)))
        assert logs_in(target(write_config(tmp_path, server)))

    def test_too_many_keys_are_called_so(self, server: LoopbackServer, tmp_path: Path, agent: Path) -> None:
        self.add(*(make_key(tmp_path / f"key{number}") for number in range(8)))
        config = Path(write_config(tmp_path, server))
        config.write_text(config.read_text().replace(str(server.identity), "/nowhere"))
        refused = refusal(target(str(config)))
        assert (
            isinstance(refused, AuthenticationFailed) and "too many keys" in refused.message and "IdentitiesOnly" in str(refused)
        )

    def test_a_dead_agent_costs_only_its_keys(
        self, server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            path = f"/tmp/silent-{os.getpid()}"
            silent.bind(path)
            silent.listen()
            monkeypatch.setenv("SSH_AUTH_SOCK", path)
            monkeypatch.setattr(identities, "AGENT_LIST_S", 0.2)
            assert logs_in(target(write_config(tmp_path, server)))
            os.unlink(path)


class TestPasswords:
    """asyncssh asks for passwords where sshd would need a real account's."""

    @pytest.fixture
    def asker(self, make_server: MakeServer) -> LoopbackServer:
        return make_server(password="hunter2")

    def config(self, tmp_path: Path, server: LoopbackServer, **options: str) -> str:
        return write_config(tmp_path, server, IdentityFile="none", **options)

    @pytest.mark.parametrize("methods", ["password", "keyboard-interactive", "publickey,keyboard-interactive,password"])
    def test_a_password_is_asked_for_and_remembered(self, asker: LoopbackServer, tmp_path: Path, methods: str) -> None:
        goal = target(self.config(tmp_path, asker, PreferredAuthentications=methods), interactive=True)
        ask = Answers("wrong", "hunter2")
        assert logs_in(goal, ask) and len(ask.asked) == 2
        assert logs_in(goal, Answers())

    def test_a_password_of_the_command_line(self, asker: LoopbackServer, tmp_path: Path) -> None:
        assert logs_in(target(self.config(tmp_path, asker), password="hunter2"))

    def test_a_wrong_password_is_refused_in_one_line_without_it(self, asker: LoopbackServer, tmp_path: Path) -> None:
        config = self.config(tmp_path, asker, PreferredAuthentications="password")
        refused = refusal(target(config, password="hunter3"))
        assert isinstance(refused, AuthenticationFailed) and "tried password" in refused.message and "hunter" not in str(refused)
        ask = Answers("a", "b", "c", "d")
        assert isinstance(refusal(target(config, interactive=True), ask), AuthenticationFailed) and len(ask.asked) == 3

    def test_nobody_is_asked_in_batch_mode_or_without_a_terminal(self, asker: LoopbackServer, tmp_path: Path) -> None:
        assert isinstance(refusal(target(self.config(tmp_path, asker))), AuthenticationFailed)
        config = self.config(tmp_path, asker, BatchMode="yes")
        ask = Answers("hunter2")
        assert isinstance(refusal(target(config, interactive=True), ask), AuthenticationFailed) and not ask.asked


class TestSilenceAndRefusals:
    def goal(self, port: int, tmp_path: Path, timeout_s: float = 0.5) -> Target:
        (tmp_path / "empty").write_text("Host *\n  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking no\n")
        return Target(f"me@127.0.0.1:{port}", ssh_config=str(tmp_path / "empty"), timeout_s=timeout_s, interactive=False)

    def test_nobody_listens(self, tmp_path: Path) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            refused = refusal(self.goal(sock.getsockname()[1], tmp_path))
        assert isinstance(refused, Unreachable) and "refuses connections" in refused.message

    def test_a_name_that_nobody_knows(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        refused = refusal(Target("no-such-host.invalid", ssh_config=str(tmp_path / "empty"), interactive=False))
        assert isinstance(refused, Unreachable) and "not known" in refused.message

    @pytest.mark.parametrize("words", [b"", b"SSH-2.0-Silent\r\n"])
    def test_a_silent_server(self, tmp_path: Path, words: bytes) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            held = []

            def accept() -> None:
                held.append(listener.accept()[0])
                held[0].sendall(words)

            threading.Thread(target=accept, daemon=True).start()
            begun = time.monotonic()
            refused = refusal(self.goal(listener.getsockname()[1], tmp_path))
            assert isinstance(refused, Unreachable) and "said nothing for 0.5 s" in refused.message
            assert time.monotonic() - begun < 10

    @pytest.mark.parametrize(
        ("words", "wanted"),
        [(b"Exceeded MaxStartups\r\n", "MaxStartups"), (b"", "MaxStartups"), (b"HTTP/1.1 400 Bad\r\n" * 5000, "no SSH server")],
    )
    def test_a_server_that_hangs_up(self, tmp_path: Path, words: bytes, wanted: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def accept() -> None:
                with listener.accept()[0] as sock:
                    sock.recv(100)
                    sock.sendall(words)

            threading.Thread(target=accept, daemon=True).start()
            refused = refusal(self.goal(listener.getsockname()[1], tmp_path))
            assert isinstance(refused, Unreachable) and wanted in str(refused)

    def test_a_frozen_link_ends_every_wait(self, server: LoopbackServer, tmp_path: Path) -> None:
        with Relay(server.host, server.port) as relay:
            config = write_config(
                tmp_path, server, Port=str(relay.port), StrictHostKeyChecking="no", UserKnownHostsFile="/dev/null"
            )
            with Connection(target(config, timeout_s=1.0)) as connection:
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

    @pytest.mark.parametrize("count", [0, 10, 500, 1000, 1300, 1600])
    def test_a_cut_during_the_login_is_one_line(self, server: LoopbackServer, tmp_path: Path, count: int) -> None:
        with Relay(server.host, server.port) as relay:
            config = write_config(
                tmp_path, server, Port=str(relay.port), StrictHostKeyChecking="no", UserKnownHostsFile="/dev/null"
            )
            relay.cut_after(count, "down")
            refused = refusal(target(config, timeout_s=2.0))
            assert isinstance(refused, Unreachable | ConnectionLost | AuthenticationFailed)

    def test_a_cut_is_never_an_end_of_output(self, server: LoopbackServer, tmp_path: Path) -> None:
        with Relay(server.host, server.port) as relay:
            config = write_config(
                tmp_path, server, Port=str(relay.port), StrictHostKeyChecking="no", UserKnownHostsFile="/dev/null"
            )
            with Connection(target(config)) as connection:
                channel = connection.start("head -c 100000000 /dev/zero; sleep 60")
                relay.cut_after(1_000_000, "down")
                with pytest.raises(ConnectionLost):
                    while channel.receive(1 << 20):
                        pass
                assert channel.exit_code() is None
                with pytest.raises(ConnectionLost):
                    connection.start("true").receive(1)

    def test_a_server_without_sessions(self, make_server: MakeServer, tmp_path: Path) -> None:
        server = make_server(options={"MaxSessions": "1"})
        with Connection(target(write_config(tmp_path, server))) as connection:
            first = connection.start("cat")
            with pytest.raises(ServerUnfit, match="MaxSessions"):
                connection.start("cat").receive(1)
            first.send(b"x")
            assert first.receive(1) == b"x"

    def test_an_outdated_server(self, tmp_path: Path) -> None:
        import asyncio

        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *told: None)  # the refused handshake is no news
        threading.Thread(target=loop.run_forever, daemon=True).start()
        key = asyncssh.generate_private_key("ssh-ed25519")

        async def serve() -> asyncssh.SSHAcceptor:
            return await asyncssh.listen("127.0.0.1", 0, server_host_keys=[key], encryption_algs=["aes256-cbc"])

        acceptor = asyncio.run_coroutine_threadsafe(serve(), loop).result(5)
        refused = refusal(self.goal(acceptor.get_port(), tmp_path, 5))
        assert isinstance(refused, Unreachable) and "outdated" in refused.message
        loop.call_soon_threadsafe(acceptor.close)
        loop.call_soon_threadsafe(loop.stop)


def test_logging_in_takes_few_round_trips(server: LoopbackServer, tmp_path: Path) -> None:
    """Key exchange init, key exchange, login with the session asked for in the same flight: three, and TCP's own."""
    with Relay(server.host, server.port, latency_s=0.2) as relay:
        config = write_config(tmp_path, server, Port=str(relay.port), StrictHostKeyChecking="no", UserKnownHostsFile="/dev/null")
        begun = time.monotonic()
        with Connection(target(config)) as connection:
            opened = time.monotonic() - begun
            connection.start("true")
            started = time.monotonic() - begun
    # A round trip takes 0.4 s here, our own work a tenth of that: the count is what is asserted.
    assert round((opened - 0.05) / 0.4) == 3
    assert round((started - 0.1) / 0.4) == 3
