"""How people come to their servers: jump hosts, proxies, settings, and shells of their own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import threading
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer, make_key
from remote.ssh.login import connect
from tests.support.faults import Lab
from tests.support.login import join, logs_in, refusal, says, target, write_config
from tests.support.sshd import MakeServer


class TestWays:
    def test_two_jumps_with_their_own_users_and_keys_and_tokens(
        self, make_server: MakeServer, tmp_path: Path
    ) -> None:
        other = make_key(tmp_path / "other")
        server, hop, outer = (
            make_server(),
            make_server(),
            make_server(options={"AuthorizedKeysFile": f"{other}.pub"}),
        )
        config = join(
            write_config(tmp_path, server, ProxyJump="%r@hop"),
            write_config(tmp_path, hop, "hop", ProxyJump="outer"),
            write_config(tmp_path, outer, "outer", IdentityFile=str(other)),
        )
        assert logs_in(target(config))
        assert (
            "Accepted publickey" in hop.log.read_text()
            and "Accepted publickey" in outer.log.read_text()
        )

    def test_a_proxy_command_that_shows_an_address_and_waits(
        self, server: LoopbackServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As Tailscale and cloudflared do: open this page, then the connection goes on."""
        script = tmp_path / "check.py"
        script.write_text(
            "import socket, sys, threading, os, time\n"
            "print('open https://login.example.org/a1b2', file=sys.stderr, flush=True)\n"
            "time.sleep(4)\n"
            "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
            "def up():\n"
            "    while d := os.read(0, 65536): s.sendall(d)\n"
            "threading.Thread(target=up, daemon=True).start()\n"
            "while d := s.recv(65536): os.write(1, d)\n"
        )
        config = write_config(tmp_path, server, ProxyCommand=f"{sys.executable} {script} %p")
        assert logs_in(target(config, timeout_s=5.0, stay_s=2.0))
        assert "https://login.example.org/a1b2" in capsys.readouterr().err

    def test_a_proxy_that_hands_its_connection_over(
        self, server: LoopbackServer, tmp_path: Path
    ) -> None:
        script = tmp_path / "hand.py"
        script.write_text(
            "import socket, sys\n"
            "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
            "socket.send_fds(socket.socket(fileno=1), [b'x'], [s.fileno()])\n"
        )
        ways = {"ProxyCommand": f"{sys.executable} {script} %p", "ProxyUseFdpass": "yes"}
        assert logs_in(target(write_config(tmp_path, server, **ways)))

    def test_a_proxy_that_wants_a_login(self, server: LoopbackServer, tmp_path: Path) -> None:
        config = write_config(
            tmp_path,
            server,
            ProxyCommand="sh -c 'echo HTTP/1.1 407 Proxy Authentication Required >&2; exit 1'",
        )
        refused = refusal(target(config, stay_s=2.0))
        assert refused.exit_code == 3 and "login of its own" in str(refused)

    def test_known_hosts_from_a_command(self, server: LoopbackServer, tmp_path: Path) -> None:
        config = write_config(
            tmp_path,
            server,
            UserKnownHostsFile="/dev/null",
            KnownHostsCommand=f"/bin/cat {server.known_hosts}",
        )
        assert logs_in(target(config))

    def test_set_env(self, make_server: MakeServer, tmp_path: Path) -> None:
        server = make_server(options={"AcceptEnv": "REMOTE_TEST_*"})
        with connect(
            target(write_config(tmp_path, server, SetEnv="REMOTE_TEST_A=b"))
        ) as connection:
            assert says(connection, "echo $REMOTE_TEST_A") == b"b\n"

    def test_an_address_with_a_zone(self, server: LoopbackServer, tmp_path: Path) -> None:
        """fe80::1%eth0, where this machine has such an address; in ssh_config a percent sign is
        written twice."""
        found = Path("/proc/net/if_inet6")
        rows = (
            [row.split() for row in found.read_text().splitlines() if row.startswith("fe80")]
            if found.exists()
            else []
        )
        if not rows:
            pytest.skip("no link-local IPv6 address here")
        address, zone = ":".join(rows[0][0][at : at + 4] for at in range(0, 32, 4)), rows[0][5]
        scope = socket.if_nametoindex(zone)
        with socket.socket(socket.AF_INET6) as listener:
            listener.bind((address, 0, 0, scope))
            listener.listen()
            threading.Thread(target=relay_one, args=(listener, server.port), daemon=True).start()
            known = {
                "StrictHostKeyChecking": "no",
                "UserKnownHostsFile": "/dev/null",
                "Port": str(listener.getsockname()[1]),
            }
            assert logs_in(
                target(write_config(tmp_path, server, HostName=f"{address}%%{zone}", **known))
            )

    @pytest.mark.parametrize(
        "cryptography",
        [
            {"KexAlgorithms": "sntrup761x25519-sha512@openssh.com"},
            {"Ciphers": "chacha20-poly1305@openssh.com"},
            {"Ciphers": "aes256-ctr", "MACs": "umac-128-etm@openssh.com"},
        ],
    )
    def test_what_only_openssh_speaks(
        self, make_server: MakeServer, tmp_path: Path, cryptography: dict[str, str]
    ) -> None:
        assert logs_in(target(write_config(tmp_path, make_server(options=cryptography))))

    @pytest.mark.parametrize(
        "options",
        [
            {"RemoteCommand": "tmux", "RequestTTY": "yes"},
            {"SessionType": "none"},
            {"StdinNull": "yes"},
            {"ForkAfterAuthentication": "yes"},
            {"ForwardX11": "yes", "ForwardAgent": "yes"},
            {"PermitLocalCommand": "yes", "LocalCommand": "echo local"},
            {"LogLevel": "QUIET"},
            {"BatchMode": "yes"},
        ],
    )
    def test_settings_for_logins_by_hand_do_no_harm(
        self, server: LoopbackServer, tmp_path: Path, options: dict[str, str]
    ) -> None:
        assert logs_in(target(write_config(tmp_path, server, **options)))

    def test_a_busy_forward(self, server: LoopbackServer, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as busy:
            forward = f"{busy.getsockname()[1]} localhost:80"
            config = write_config(
                tmp_path, server, LocalForward=forward, ExitOnForwardFailure="yes"
            )
            assert logs_in(target(config))

    def test_files_as_people_write_them(self, server: LoopbackServer, tmp_path: Path) -> None:
        """CRLF, Include with a glob, a quoted path with blanks, negation, Match exec, a note behind
        a value."""
        folder = tmp_path / "a folder"
        folder.mkdir()
        key = folder / "the key"
        shutil.copy(server.identity, key)
        included = Path(write_config(tmp_path, server, IdentityFile=f'"{key}"'))
        included.rename(folder / "one.conf")
        (folder / "one.conf").write_bytes(
            (folder / "one.conf").read_bytes().replace(b"\n", b"\r\n")
        )
        main = tmp_path / "main"
        main.write_text(
            'Host !box *\n  User nobody\nMatch host box exec "true"\n  ConnectTimeout 7 # a'
            f' note\nInclude "{folder}/*.conf"\n'
        )
        assert logs_in(target(str(main)))


def relay_one(listener: socket.socket, port: int) -> None:
    """Pass one connection on to 127.0.0.1."""
    client, server = listener.accept()[0], socket.create_connection(("127.0.0.1", port))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):  # ssh hangs up without reading all
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    threading.Thread(target=pump, args=(client, server), daemon=True).start()
    pump(server, client)


class TestShells:
    """What stands behind a login and does not start our program: code 7, what it said, and where to
    look."""

    def lab(self, make_server: MakeServer, tmp_path: Path, script: str, **settings: object) -> Lab:
        shell = tmp_path / "shell"
        shell.write_text(f"#!/bin/sh\n{script}\n")
        shell.chmod(0o755)
        return Lab(make_server(shell=str(shell)), tmp_path, settings={"timeout_s": 2.0, **settings})

    @pytest.mark.parametrize(
        ("script", "said"),
        [
            ("echo 'Choose: 1) queue 2) quit'; sleep 60", "Choose: 1) queue"),
            ("echo 'bye'; exit 0", "bye"),
            ("exec cat", ""),
            ('echo "Error: Your SSH client doesn\'t support PTY"; exit 1', "direct address"),
        ],
    )
    def test_it_is_said(
        self, make_server: MakeServer, tmp_path: Path, script: str, said: str
    ) -> None:
        done = self.lab(make_server, tmp_path, script).task("status")
        assert done.code in (7, 13) and said in done.err and len(done.error_lines) == 1, done
        assert "bashrc" in done.err or "direct address" in done.err, done

    def test_a_shell_that_is_slow_to_start(self, make_server: MakeServer, tmp_path: Path) -> None:
        lab = self.lab(make_server, tmp_path, 'sleep 3; exec /bin/sh "$@"')
        slow = lab.task("status")
        assert slow.code == 4 and "remote.timeout_s" in slow.err, slow
        lab.settings = {"timeout_s": 12.0}
        assert lab.task("status").code == 0

    def test_a_shell_that_prints_first(self, make_server: MakeServer, tmp_path: Path) -> None:
        assert (
            self.lab(make_server, tmp_path, 'echo "Welcome!"; exec /bin/sh "$@"')
            .task("status")
            .code
            == 0
        )
