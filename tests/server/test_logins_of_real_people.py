"""Logins as people have them: certificates, two methods in a row, jump hosts with tokens, shells
that do other things."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.errors import HostKeyRefused
from remote.loopback import LoopbackServer, Serving, make_key
from remote.ssh.target import Target
from tests.e2e.test_three_commands import fab
from tests.support.faults import Lab, run_task
from tests.support.login import join, logs_in, refusal, target, write_config
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
