"""Logins as people have them: certificates, two methods in a row, jump hosts with tokens, shells
that do other things."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.errors import HostKeyRefused
from remote.loopback import LoopbackServer, Serving, make_key
from remote.ssh.login import connect
from remote.ssh.target import Target
from tests.e2e.test_three_commands import fab
from tests.support.faults import Lab, run_task
from tests.support.login import join, logs_in, refusal, says, target, write_config
from tests.support.project import make_project
from tests.support.sshd import AccountServer, MakeServer, sparse_path
from tests.support.terminal import fab_on_terminal, read_until

pytestmark = [pytest.mark.timeout(120), pytest.mark.needs("ssh")]


def keygen(*words: object) -> None:
    subprocess.run(["ssh-keygen", "-q", *map(str, words)], check=True, capture_output=True)


class TestCertificates:
    @pytest.fixture
    def server(self, make_server: MakeServer, tmp_path: Path) -> LoopbackServer:
        """One that lets in whom an authority has signed, and nobody else."""
        self.key, authority = make_key(tmp_path / "user"), make_key(tmp_path / "authority")
        server = make_server(
            options={"TrustedUserCAKeys": f"{authority}.pub", "AuthorizedKeysFile": "none"}
        )
        keygen("-s", authority, "-I", "me", "-n", server.user, f"{self.key}.pub")
        return server

    def add(self, *words: object) -> None:
        subprocess.run(["ssh-add", "-q", *map(str, words)], check=True, capture_output=True)

    def test_beside_the_key(self, server: LoopbackServer, tmp_path: Path) -> None:
        assert logs_in(target(write_config(tmp_path, server, IdentityFile=str(self.key))))

    def test_key_in_the_agent_and_certificate_beside_the_file(
        self, server: LoopbackServer, tmp_path: Path, agent: Path
    ) -> None:
        certificate = Path(f"{self.key}-cert.pub")
        kept = certificate.read_bytes()
        certificate.unlink()
        self.add(self.key)
        certificate.write_bytes(kept)
        assert logs_in(target(write_config(tmp_path, server, IdentityFile=str(self.key))))

    def test_agent_and_certificate_file(
        self, server: LoopbackServer, tmp_path: Path, agent: Path
    ) -> None:
        self.add(self.key)
        moved = tmp_path / "elsewhere-cert.pub"
        Path(f"{self.key}-cert.pub").rename(moved)
        config = write_config(
            tmp_path, server, IdentityFile=f"{self.key}.pub", CertificateFile=str(moved)
        )
        assert logs_in(target(config))

    def test_key_and_certificate_both_in_the_agent(
        self, server: LoopbackServer, tmp_path: Path, agent: Path
    ) -> None:
        self.add(self.key)
        self.key.unlink()
        assert logs_in(target(write_config(tmp_path, server, IdentityFile=str(self.key))))

    def test_a_key_with_a_passphrase_and_a_certificate(
        self, server: LoopbackServer, tmp_path: Path
    ) -> None:
        keygen("-p", "-N", "secret", "-f", self.key)
        assert logs_in(
            target(write_config(tmp_path, server, IdentityFile=str(self.key)), passphrase="secret")
        )

    def test_a_hosts_certificate(self, make_server: MakeServer, tmp_path: Path) -> None:
        authority, host = make_key(tmp_path / "ca"), make_key(tmp_path / "hostkey")
        keygen("-s", authority, "-I", "box", "-h", "-n", "127.0.0.1", f"{host}.pub")
        server = make_server(options={"HostKey": str(host), "HostCertificate": f"{host}-cert.pub"})
        known = tmp_path / "known"
        known.write_text(f"@cert-authority * {Path(f'{authority}.pub').read_text()}")
        config = write_config(
            tmp_path, server, UserKnownHostsFile=str(known), StrictHostKeyChecking="yes"
        )
        assert logs_in(target(config))
        known.write_text(known.read_text() + f"@revoked * {Path(f'{host}.pub').read_text()}")
        assert isinstance(refusal(target(config)), HostKeyRefused)


class TestPasswordAndKey:
    @pytest.fixture
    def account(self, system_user: str) -> Iterator[str]:
        """A real account with the password hunter2."""
        if not shutil.which("openssl") or not shutil.which("chage"):
            pytest.skip("no openssl to make a password with, or no chage")
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", "hunter2"], capture_output=True, text=True, check=True
        ).stdout.strip()
        subprocess.run(["usermod", "-p", hashed, system_user], check=True)
        yield system_user
        subprocess.run(["usermod", "-p", "*", system_user], check=True)
        subprocess.run(["chage", "-d", "1", "-E", "-1", system_user], check=True)

    @pytest.fixture
    def place(self) -> Iterator[Path]:
        import tempfile

        folder = Path(tempfile.mkdtemp(prefix="two-"))
        folder.chmod(0o711)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)

    def server(self, place: Path, account: str, methods: str) -> LoopbackServer:
        options = {"PasswordAuthentication": "yes", "AuthenticationMethods": methods}
        return AccountServer(place / "s", Serving(user=account, options=options))

    @pytest.mark.parametrize("methods", ["password,publickey", "publickey,password"])
    def test_both_are_wanted(self, place: Path, account: str, methods: str, tmp_path: Path) -> None:
        with self.server(place, account, methods) as server:
            config = write_config(tmp_path, server)
            assert logs_in(target(config, password="hunter2"))
            refused = refusal(target(config, password="wrong"))
            assert refused.exit_code == 6 and "ermission denied" in str(refused)

    def test_both_are_wanted_without_the_ssh_program(
        self, place: Path, account: str, tmp_path: Path
    ) -> None:
        for methods, is_let_in in (("publickey,password", True), ("password,publickey", False)):
            with self.server(place / methods, account, methods) as server:
                goal = target(
                    write_config(tmp_path, server), password="hunter2", program="paramiko"
                )
                if is_let_in:
                    assert logs_in(goal)
                else:
                    refused = refusal(goal)
                    assert refused.exit_code == 6 and "allowed types: ['publickey']" in str(refused)

    def test_the_second_factor_is_asked_for_once_for_all_commands(
        self, place: Path, account: str, tmp_path: Path
    ) -> None:
        """A key and then a password, at a terminal: deploy asks, train, status and fetch-results do
        not."""
        if not os.access("/usr/bin/python3", os.X_OK):
            pytest.skip("no python that everybody may execute")
        path = Path(sparse_path(place / "bin", without=["python3"]), "python3")
        path.symlink_to("/usr/bin/python3")
        options = {"PasswordAuthentication": "yes", "AuthenticationMethods": "publickey,password"}
        project = make_project(
            tmp_path / "project",
            {"a.sh": "echo up\n"},
            settings={"requirements": "none", "command": "sh a.sh", "project": "p"},
            parts=("fabfile.py", "remote"),
        )
        serving = Serving(user=account, options=options, path=str(path.parent))
        with AccountServer(place / "s", serving) as server:
            leader, process = fab_on_terminal(project, server, "deploy")
            seen = read_until(leader, b"password: ")
            os.write(leader, b"hunter2\n")
            seen += read_until(leader, b"next: ")
            assert process.wait(30) == 0 and b"hunter2" not in seen
            for words in (["train", "--follow"], ["status"], ["fetch-results"]):
                fab(project, server, *words)
            assert server.log.read_text().count("Accepted password for") == 1
            fab(project, server, "logout")
            assert "asks for more than a key" in fab(project, server, "status", code=6).stderr

    def test_an_expired_password_is_called_so(
        self, place: Path, account: str, tmp_path: Path
    ) -> None:
        subprocess.run(["chage", "-d", "0", account], check=True)
        with self.server(place, account, "password") as server:
            lab = Lab(server, tmp_path)
            goal = dataclasses.replace(lab.target(), password="hunter2")
            done = run_task("status", lab.project, lab.all_settings, goal, False)
            assert done.code == 6 and "expired" in done.err and "ssh -t" in done.err, done

    def test_an_expired_account(self, place: Path, account: str, tmp_path: Path) -> None:
        subprocess.run(["chage", "-E", "1", account], check=True)
        with self.server(place, account, "password") as server:
            refused = refusal(target(write_config(tmp_path, server), password="hunter2"))
            assert refused.exit_code == 6, refused


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


def test_a_user_with_a_backslash_is_quoted_in_what_is_to_be_typed(tmp_path: Path) -> None:
    goal = Target("DOM\\me@box", interactive=False)
    assert goal.typed == "'DOM\\me@box'" and Target("me@box:22").typed == "me@box:22"


def test_several_hosts_of_which_one_is_dead(server: LoopbackServer, tmp_path: Path) -> None:
    config = join(
        write_config(tmp_path, server, "alive"), write_config(tmp_path, server, "dead", Port="1")
    )
    project = make_project(
        tmp_path / "project",
        {"a.sh": "x"},
        settings={"project": "p"},
        parts=("fabfile.py", "remote"),
    )
    argv = [sys.executable, "-m", "fabric", "-S", config, "-H", "dead,alive", "status"]
    done = subprocess.run(
        argv, cwd=project, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )
    assert done.returncode == 3 and "unreachable" in done.stdout and "dead" in done.stdout, done
