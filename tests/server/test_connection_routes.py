"""The way to a real sshd: host keys, settings, jump hosts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from remote.errors import HostKeyRefused, Unreachable, UsageError
from remote.loopback import LoopbackServer, make_key
from remote.ssh import host_keys
from remote.ssh.connection import Connection
from tests.support.login import Answers, forget_secrets, logs_in, refusal, says, target, write_config
from tests.support.sshd import MakeServer, sparse_path

pytestmark = [pytest.mark.timeout(90), pytest.mark.skipif(not shutil.which("ssh"), reason="ssh_config is asked from ssh")]


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_secrets(monkeypatch)


class TestHostKeys:
    def known(self, server: LoopbackServer) -> str:
        return server.known_hosts.read_text()

    def other(self, tmp_path: Path) -> str:
        return " ".join(Path(f"{make_key(tmp_path / 'another')}.pub").read_text().split()[:2])

    def with_known(self, tmp_path: Path, server: LoopbackServer, text: str, **options: str) -> tuple[str, Path]:
        file = tmp_path / "sub" / "known hosts"
        file.parent.mkdir(exist_ok=True)
        if text:
            file.write_text(text)
        return write_config(tmp_path, server, UserKnownHostsFile=f'"{file}"', **options), file

    def test_an_unknown_key_is_refused_or_asked_about(self, server: LoopbackServer, tmp_path: Path) -> None:
        config, file = self.with_known(tmp_path, server, "", HashKnownHosts="no")
        refused = refusal(target(config))
        assert isinstance(refused, HostKeyRefused) and "SHA256:" in refused.message and f"ssh -p {server.port}" in str(refused)
        no = Answers()
        assert isinstance(refusal(target(config, interactive=True), no), HostKeyRefused) and "SHA256:" in no.asked[0]
        assert not file.exists()
        assert logs_in(target(config, interactive=True), Answers(yes=True))
        assert file.read_text() == f"[127.0.0.1]:{server.port} {' '.join(self.known(server).split()[1:3])}\n"
        assert logs_in(target(config))
        assert subprocess.run(["ssh", "-F", config, "box", "true"], capture_output=True).returncode == 0

    def test_accept_new_takes_unknown_ones_only(self, server: LoopbackServer, tmp_path: Path) -> None:
        config, file = self.with_known(tmp_path, server, "", StrictHostKeyChecking="accept-new", HashKnownHosts="yes")
        assert logs_in(target(config))
        assert file.read_text().startswith("|1|") and logs_in(target(config))
        file.write_text(f"[127.0.0.1]:{server.port} {self.other(tmp_path)}\n")
        host_keys._accepted.clear()
        assert isinstance(refusal(target(config)), HostKeyRefused)

    @pytest.mark.parametrize("strict", ["no", "ask", "yes"])
    def test_a_changed_key_is_always_refused(self, server: LoopbackServer, tmp_path: Path, strict: str) -> None:
        text = f"# a note\nbroken line\n[127.0.0.1]:{server.port} {self.other(tmp_path)}\n"
        config, file = self.with_known(tmp_path, server, text, StrictHostKeyChecking=strict)
        refused = refusal(target(config, interactive=True), Answers(yes=True))
        assert isinstance(refused, HostKeyRefused) and "CHANGED" in refused.message and f"{file}:3" in refused.message
        assert "ssh-keygen -f" in str(refused) and file.read_text() == text

    def test_the_remedy_for_a_changed_key_works(self, server: LoopbackServer, tmp_path: Path) -> None:
        config, _ = self.with_known(
            tmp_path, server, f"[127.0.0.1]:{server.port} {self.other(tmp_path)}\n", StrictHostKeyChecking="no"
        )
        remedy = str(refusal(target(config)).remedy).partition("reinstalled: ")[2]
        subprocess.run(remedy, shell=True, check=True, capture_output=True)
        assert logs_in(target(config))

    def test_revoked_and_certificate_only_keys_are_refused(self, server: LoopbackServer, tmp_path: Path) -> None:
        name, key = f"[127.0.0.1]:{server.port}", " ".join(self.known(server).split()[1:3])
        for marker, word in (("@revoked", "revoked"), ("@cert-authority", "authority")):
            lines = f"{marker} {name} {key}\n" + (f"{name} {key}\n" if marker == "@revoked" else "")
            config, _ = self.with_known(tmp_path, server, lines, StrictHostKeyChecking="no")
            refused = refusal(target(config))
            assert isinstance(refused, HostKeyRefused) and word in refused.message

    def test_hashed_wildcard_and_aliased_keys_are_found(self, server: LoopbackServer, tmp_path: Path) -> None:
        key = " ".join(self.known(server).split()[1:3])
        config, file = self.with_known(tmp_path, server, f"[127.0.0.1]:{server.port} {key}\n")
        subprocess.run(["ssh-keygen", "-H", "-f", file], check=True, capture_output=True)
        assert file.read_text().startswith("|1|") and logs_in(target(config))
        config, _ = self.with_known(tmp_path, server, f"[127.0.0.*]:* {key}\n")
        assert logs_in(target(config))
        config, _ = self.with_known(tmp_path, server, f"cluster {key}\n", HostKeyAlias="cluster")
        assert logs_in(target(config))

    def test_the_known_one_of_several_keys_is_asked_for(self, make_server: MakeServer, tmp_path: Path) -> None:
        rsa = make_key(tmp_path / "rsa", "rsa")
        server = make_server(options={"HostKey": str(rsa)})
        key = " ".join(Path(f"{rsa}.pub").read_text().split()[:2])
        config, _ = self.with_known(tmp_path, server, f"[127.0.0.1]:{server.port} {key}\n")
        assert logs_in(target(config))


class TestRoutes:
    def jump_config(self, tmp_path: Path, server: LoopbackServer, hop: LoopbackServer, **options: str) -> str:
        config = Path(write_config(tmp_path, server, **options))
        hop_config = Path(write_config(tmp_path, hop)).read_text().replace("Host box", "Host hop")
        config.write_text(config.read_text() + hop_config)
        return str(config)

    def test_through_a_jump_host(self, make_server: MakeServer, tmp_path: Path) -> None:
        server, hop = make_server(), make_server()
        with Connection(target(self.jump_config(tmp_path, server, hop, ProxyJump="hop"))) as connection:
            assert says(connection) == b"hello\n"
            channel = connection.start("head -c 30000000 /dev/zero")
            total = 0
            while data := channel.receive(1 << 20):
                total += len(data)
            assert total == 30_000_000
        assert "direct-tcpip" in hop.log.read_text() or "127.0.0.1" in hop.log.read_text()

    def test_through_two_jump_hosts_one_with_a_jump_of_its_own(self, make_server: MakeServer, tmp_path: Path) -> None:
        server, hop, outer = make_server(), make_server(), make_server()
        config = Path(self.jump_config(tmp_path, server, hop, ProxyJump="hop"))
        more = Path(write_config(tmp_path, outer)).read_text().replace("Host box", "Host outer")
        config.write_text(config.read_text() + "  ProxyJump outer\n" + more)
        assert logs_in(target(str(config)))

    def test_the_jump_hosts_key_counts_too(self, make_server: MakeServer, tmp_path: Path) -> None:
        server, hop = make_server(), make_server()
        config = Path(self.jump_config(tmp_path, server, hop, ProxyJump="hop"))
        (tmp_path / "empty").touch()
        config.write_text(config.read_text().replace(str(hop.known_hosts), str(tmp_path / "empty")))
        refused = refusal(target(str(config)))
        assert isinstance(refused, HostKeyRefused) and refused.host == "hop"

    def test_a_jump_host_that_reaches_nobody(self, make_server: MakeServer, tmp_path: Path) -> None:
        server, hop = make_server(), make_server()
        config = self.jump_config(tmp_path, server, hop, ProxyJump="hop", Port="1")
        refused = refusal(target(config))
        assert isinstance(refused, Unreachable) and "jump host can't reach" in refused.message

    def test_jump_hosts_in_a_circle(self, server: LoopbackServer, tmp_path: Path) -> None:
        assert isinstance(refusal(target(write_config(tmp_path, server, ProxyJump="box"))), UsageError)

    def test_a_proxy_command(self, server: LoopbackServer, tmp_path: Path) -> None:
        relay = tmp_path / "relay.py"
        relay.write_text(
            "import socket, sys, threading, os\ns = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
            "def up():\n    while d := os.read(0, 65536): s.sendall(d)\nthreading.Thread(target=up, daemon=True).start()\n"
            "while d := s.recv(65536): os.write(1, d)\n"
        )
        assert logs_in(target(write_config(tmp_path, server, ProxyCommand=f"python3 {relay} %h %p")))
        refused = refusal(target(write_config(tmp_path, server, ProxyCommand="echo no way >&2; false")))
        assert isinstance(refused, Unreachable) and "no way" in refused.message

    def test_settings_that_crash_fabric_work(self, server: LoopbackServer, tmp_path: Path) -> None:
        config = Path(write_config(tmp_path, server, ProxyJump="none", ForwardAgent="~/agent.sock"))
        config.write_text(config.read_text().replace(f"Port {server.port}", f"Port {server.port} # a note") + "  SetEnv A=b\n")
        assert logs_in(target(str(config)))

    def test_a_broken_ssh_config_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "config").write_text("Host box\n  NoSuchOption yes\n")
        refused = refusal(target(str(tmp_path / "config")))
        assert isinstance(refused, UsageError) and "line 2" in refused.message

    def test_without_an_openssh_client(self, server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = write_config(tmp_path, server)
        monkeypatch.setenv("PATH", sparse_path(tmp_path / "few", ["sh"]))
        assert logs_in(target(config))
