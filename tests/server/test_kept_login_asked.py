"""A login at which somebody is asked: once, for as long as it takes, and again where it is gone."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from remote.loopback import LoopbackServer, embedded
from remote.ssh.login import connect
from tests.e2e.test_three_commands import fab
from tests.support.login import logs_in, says, target, write_config
from tests.support.project import make_project
from tests.support.sshd import MakeServer
from tests.support.terminal import fab_on_terminal, read_until

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.needs("ssh"),
    pytest.mark.usefixtures("runtime"),
]


def two_factors(connections: set[Any], user: str, password: str | None) -> Any:
    """asyncssh's server: a password, then a code, by keyboard-interactive."""
    import asyncssh

    class Policy(asyncssh.SSHServer):
        asked = 0

        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self._conn = conn
            connections.add(conn)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.discard(self._conn)

        def begin_auth(self, username: str) -> bool:
            return True

        def public_key_auth_supported(self) -> bool:
            return False

        def password_auth_supported(self) -> bool:
            return False

        def kbdint_auth_supported(self) -> bool:
            return True

        def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> Any:
            return "", "", "en", [("Password: ", False)]

        def validate_kbdint_response(self, username: str, responses: Any) -> Any:
            self.asked += 1
            if self.asked == 1:
                return (
                    ("", "", "en", [("One-time password: ", False)])
                    if list(responses) == [password]
                    else False
                )
            return list(responses) == ["424242"]

    return Policy


def with_a_password(
    make_server: MakeServer, tmp_path: Path, script: str, **settings: object
) -> tuple[LoopbackServer, Path]:
    """A server that no key opens, and a project."""
    server = make_server(password="hunter2")
    config = server.ssh_config.read_text()
    server.ssh_config.write_text(config.replace(f'"{server.identity}"', "none"))
    project = make_project(
        tmp_path / "project",
        {"a.sh": script},
        settings={"requirements": "none", "command": "sh a.sh", "project": "p", **settings},
        parts=("fabfile.py", "remote"),
    )
    return server, project


def test_a_second_factor_is_asked_for_once_for_all_commands(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    monkeypatch.setattr(embedded, "make_policy", two_factors)
    server, project = with_a_password(make_server, tmp_path, "echo up\n")
    leader, process = fab_on_terminal(project, server, "deploy")
    seen = read_until(leader, b"Password: ")
    os.write(leader, b"hunter2\n")
    seen += read_until(leader, b"One-time password: ")
    os.write(leader, b"424242\n")
    seen += read_until(leader, b"next: ")
    assert process.wait(30) == 0 and b"hunter2" not in seen and b"424242" not in seen
    for words in (["train", "--follow"], ["status"], ["fetch-results"]):
        told = fab(project, server, *words)
        assert "assword" not in told.stdout + told.stderr
    assert "logged out" in fab(project, server, "logout").stdout
    refused = fab(project, server, "status", code=6)
    assert "Permission denied" in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_a_password_may_be_typed_slowly(make_server: MakeServer, tmp_path: Path) -> None:
    """Our program waits behind the login, more of it than a pipe holds: that is no silence."""
    server, project = with_a_password(make_server, tmp_path, "echo up\n", timeout_s=2)
    leader, process = fab_on_terminal(project, server, "deploy")
    read_until(leader, b"assword:")
    time.sleep(6)
    os.write(leader, b"hunter2\n")
    read_until(leader, b"next: ")
    assert process.wait(30) == 0
    fab(project, server, "logout")


def test_a_login_that_waits_for_a_phone_is_not_cut(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is silent until somebody has approved it there."""
    policy = embedded.make_policy

    def patient(*about: Any) -> Any:
        class Patient(policy(*about)):  # type: ignore[misc]
            async def begin_auth(self, username: str) -> bool:
                await asyncio.sleep(5)
                return True

        return Patient

    monkeypatch.setattr(embedded, "make_policy", patient)
    server = make_server(password="hunter2")
    goal = target(write_config(tmp_path, server), timeout_s=2.0, stay_s=5.0, interactive=True)
    assert logs_in(goal)


def test_following_asks_again_for_a_login_that_is_gone(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    """On the plain terminal; then the live screen is back."""
    monkeypatch.setattr(embedded, "make_policy", two_factors)
    script = "echo up\nwhile [ ! -e ../go ]; do sleep 0.1; done\n"
    server, project = with_a_password(make_server, tmp_path, script)
    leader, process = fab_on_terminal(project, server, "train")

    def answer() -> None:
        for question, reply in ((b"Password: ", b"hunter2\n"), (b"password: ", b"424242\n")):
            read_until(leader, question, 120)
            os.write(leader, reply)

    answer()
    read_until(leader, b"q leaves", 120)
    assert "logged out" in fab(project, server, "logout").stdout
    answer()
    read_until(leader, b"q leaves", 120)
    (run,) = (server.home / "projects/p/runs").glob("2*")
    (run / "go").touch()
    assert b"finished" in read_until(leader, b"fetch-results", 120) and process.wait(60) == 0


def test_a_stored_password_is_not_sent_to_the_code_prompt(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[str] = []
    policy = two_factors

    def watched(connections: set[Any], user: str, password: str | None) -> Any:
        class Watched(policy(connections, user, password)):  # type: ignore[misc]
            def validate_kbdint_response(self, username: str, responses: Any) -> Any:
                answers.extend(responses)
                return super().validate_kbdint_response(username, responses)

        return Watched

    monkeypatch.setattr(embedded, "make_policy", watched)
    server = make_server(password="hunter2")
    goal = target(write_config(tmp_path, server, IdentityFile="none"), password="hunter2")
    with pytest.raises(Exception, match="ermission denied"), connect(goal) as connection:
        says(connection)
    assert answers.count("hunter2") == 1
