"""One login for several commands: shared, noticed when it is dead, ended by logout; the user's own
is used and left alone."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from remote.errors import UsageError
from remote.loopback import LoopbackServer
from remote.ssh.login import connect
from remote.ssh.openssh import OpenSSH, log_out
from remote.ssh.target import Target
from tests.e2e.test_three_commands import FAB, fab
from tests.support.faults import Lab, run_task, wait_until
from tests.support.login import logs_in, refusal, says, target, write_config
from tests.support.project import make_project
from tests.support.proxy import Relay
from tests.support.sshd import MakeServer, drop_connections
from tests.support.terminal import fab_on_terminal, read_until

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.needs("ssh"),
    pytest.mark.usefixtures("runtime"),
]


def logins(server: LoopbackServer) -> int:
    """How often sshd let somebody in."""
    return server.log.read_text(errors="replace").count("Accepted publickey for")


def sockets(runtime: Path) -> list[Path]:
    return [path for path in runtime.rglob("*") if path.is_socket()]


def masters(runtime: Path) -> list[int]:
    """The processes that hold a login, by their title."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(runtime).encode() in entry.read_bytes() and b"[mux]" in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_commands_share_one_login_until_logout(
    server: LoopbackServer, tmp_path: Path, runtime: Path
) -> None:
    goal = target(write_config(tmp_path, server), stay_s=60.0)
    for _ in range(4):
        assert logs_in(goal)
    assert logins(server) == 1 and len(sockets(runtime)) == 1
    assert log_out(goal) is True
    wait_until(lambda: not sockets(runtime))  # its process ends after it has answered
    assert log_out(goal) is False
    assert logs_in(goal) and logins(server) == 2
    log_out(goal)


def test_no_login_is_kept_where_that_is_switched_off(
    server: LoopbackServer, tmp_path: Path, runtime: Path
) -> None:
    goal = target(write_config(tmp_path, server))
    assert logs_in(goal) and logs_in(goal)
    assert logins(server) == 2 and not sockets(runtime)
    assert logs_in(dataclasses.replace(goal, stay_s=60.0)) and log_out(goal)
    wait_until(lambda: not sockets(runtime))  # one from before the switch; it ends when it answered


def test_a_kept_login_ends_by_itself(server: LoopbackServer, tmp_path: Path, runtime: Path) -> None:
    assert logs_in(target(write_config(tmp_path, server), stay_s=1.0)) and sockets(runtime)
    wait_until(lambda: not sockets(runtime))


def test_two_commands_at_once(server: LoopbackServer, tmp_path: Path) -> None:
    goal = target(write_config(tmp_path, server), stay_s=60.0)
    went: list[bool] = []
    threads = [threading.Thread(target=lambda: went.append(logs_in(goal))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert went == [True] * 6
    before = logins(server)
    assert logs_in(goal) and logins(server) == before
    log_out(goal)


def test_a_socket_whose_process_was_killed_is_replaced(
    server: LoopbackServer, tmp_path: Path, runtime: Path
) -> None:
    goal = target(write_config(tmp_path, server), stay_s=60.0)
    assert logs_in(goal)
    (master,) = masters(runtime)
    os.kill(master, signal.SIGKILL)
    assert sockets(runtime)
    assert logs_in(goal) and logs_in(goal) and logins(server) == 2
    log_out(goal)


def test_a_dead_login_is_noticed_within_the_time_limit_and_replaced(
    server: LoopbackServer, tmp_path: Path
) -> None:
    """The laptop slept, or changed networks: nothing that is sent over the kept login arrives any
    more."""
    with Relay(server.host, server.port) as relay:
        config = write_config(
            tmp_path,
            server,
            Port=str(relay.port),
            StrictHostKeyChecking="no",
            UserKnownHostsFile="/dev/null",
        )
        goal = target(config, stay_s=60.0, timeout_s=3.0)
        assert logs_in(goal)
        relay.freeze_open()
        begun = time.monotonic()
        assert logs_in(goal)
        assert time.monotonic() - begun < 8 and logins(server) == 2
        log_out(goal)


def test_a_login_that_was_cut_is_replaced(server: LoopbackServer, tmp_path: Path) -> None:
    goal = target(write_config(tmp_path, server), stay_s=60.0)
    for number in range(3):
        assert logs_in(goal) and logins(server) == number + 1
        drop_connections(server)
    log_out(goal)


def test_a_stopped_master_is_replaced(
    server: LoopbackServer, tmp_path: Path, runtime: Path
) -> None:
    goal = target(write_config(tmp_path, server), stay_s=60.0, timeout_s=2.0, interactive=True)
    assert logs_in(goal)
    (master,) = masters(runtime)
    os.kill(master, signal.SIGSTOP)
    begun = time.monotonic()
    try:
        assert logs_in(goal) and time.monotonic() - begun < 30
    finally:
        os.kill(master, signal.SIGKILL)
    log_out(goal)


def test_a_server_that_allows_one_session_works_without(
    make_server: MakeServer, tmp_path: Path
) -> None:
    server = make_server(options={"MaxSessions": "1"})
    goal = target(write_config(tmp_path, server), stay_s=60.0)
    with connect(goal) as connection:
        first = connection.start("cat")
        first.send(b"x")
        assert first.receive(1) == b"x"
        assert says(connection) == b"hello\n"
        first.send(b"y")
        assert first.receive(1) == b"y"
    log_out(goal)


def test_the_users_own_login_is_used_and_never_ended(
    server: LoopbackServer, tmp_path: Path, runtime: Path
) -> None:
    own = runtime / "own"
    config = write_config(tmp_path, server, ControlPath=str(own))
    master = subprocess.Popen(["ssh", "-F", config, "-M", "-N", "box"], stdin=subprocess.DEVNULL)
    try:
        while not own.exists():
            time.sleep(0.05)
        goal = target(config, stay_s=60.0)
        assert logs_in(goal) and logs_in(goal)
        assert log_out(goal) is False and logs_in(goal)
        assert logins(server) == 1 and sockets(runtime) == [own] and master.poll() is None
    finally:
        master.terminate()
        master.wait()


def test_the_users_own_dead_login_is_gone_round(
    server: LoopbackServer, tmp_path: Path, runtime: Path
) -> None:
    own = runtime / "own"
    with Relay(server.host, server.port) as relay:
        config = write_config(
            tmp_path,
            server,
            ControlPath=str(own),
            Port=str(relay.port),
            StrictHostKeyChecking="no",
            UserKnownHostsFile="/dev/null",
        )
        master = subprocess.Popen(
            ["ssh", "-F", config, "-M", "-N", "box"], stdin=subprocess.DEVNULL
        )
        try:
            wait_until(own.exists)
            relay.freeze_open()
            assert logs_in(target(config, stay_s=60.0, timeout_s=2.0))
            assert own.exists() and master.poll() is None and logins(server) == 2
        finally:
            master.terminate()
            master.wait()


def test_a_control_path_without_its_folder_is_named(server: LoopbackServer, tmp_path: Path) -> None:
    config = write_config(
        tmp_path, server, ControlPath=f"{tmp_path}/no/x", ControlMaster="auto", ControlPersist="9"
    )
    refused = refusal(target(config))
    assert isinstance(refused, UsageError) and "ControlPath" in refused.message, refused


def test_another_key_is_another_login(
    server: LoopbackServer, tmp_path: Path, runtime: Path
) -> None:
    config = write_config(tmp_path, server)
    for goal in (
        target(config, stay_s=60.0),
        target(config, stay_s=60.0, identities=(str(server.identity),)),
    ):
        assert logs_in(goal)
    assert logins(server) == 2 and len(sockets(runtime)) == 2


def test_only_long_paths_mean_no_kept_login(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote.ssh.openssh.LONGEST_PLACE", 3)
    goal = target(write_config(tmp_path, server), stay_s=60.0)
    assert logs_in(goal) and logs_in(goal) and logins(server) == 2
    lab = Lab(server, tmp_path)
    settings = {**lab.all_settings, "stay_s": 60.0}
    told = run_task("doctor", lab.project, settings, goal, False).out
    assert "can't be kept" in told and "XDG_RUNTIME_DIR" in told


def test_ctrl_c_leaves_a_login_behind_a_jump_host(
    make_server: MakeServer, tmp_path: Path, runtime: Path
) -> None:
    """The jump host's ssh hears the terminal's keys, too."""
    server, hop = make_server(), make_server()
    hop_config = hop.ssh_config.read_text().replace("Host loopback", "Host hop")
    server.ssh_config.write_text(server.ssh_config.read_text() + "  ProxyJump hop\n" + hop_config)
    project = make_project(
        tmp_path / "project",
        {"a.sh": "echo up\nsleep 60\n"},
        settings={"requirements": "none", "command": "sh a.sh", "project": "p"},
        parts=("fabfile.py", "remote"),
    )
    # In a shell, whose end alone would hang up.
    shell = ["sh", "-c", 'trap : INT; "$@"; echo is over; read x', "sh"]
    words = [*FAB, "-S", str(server.ssh_config), "-H", "loopback", "train", "--follow"]
    leader, process = fab_on_terminal(project, server, program=[*shell, *words])
    read_until(leader, b"q leaves", 60)
    os.write(leader, b"\x03")
    read_until(leader, b"is over", 30)
    assert '"running"' in fab(project, server, "status", "--json").stdout
    assert logins(server) == 1 and len(sockets(runtime)) == 1
    process.kill()
    fab(project, server, "stop")
    fab(project, server, "logout")


def test_a_first_login_and_the_ones_after_it_take_no_word(
    server: LoopbackServer, tmp_path: Path
) -> None:
    project = make_project(
        tmp_path / "project",
        {"a.sh": "echo up\n"},
        settings={"requirements": "none", "command": "sh a.sh", "project": "p"},
        parts=("fabfile.py", "remote"),
    )
    told = [fab(project, server, "status").stderr for _ in range(2)]
    assert told == ["", ""] and logins(server) == 1
    assert re.fullmatch(r"loopback: logged out\n", fab(project, server, "logout").stdout)
    assert fab(project, server, "logout").stdout == "loopback: no login was kept\n"


def test_the_way_tells_how_it_got_in(server: LoopbackServer, tmp_path: Path) -> None:
    goal = target(write_config(tmp_path, server), stay_s=60.0)
    methods = []
    for _ in range(2):
        with connect(goal) as connection:
            says(connection)
            methods.append(connection.method)
    assert methods == ["publickey", ""]
    log_out(goal)


def test_a_way_without_a_login_has_none_to_end(server: LoopbackServer, tmp_path: Path) -> None:
    way = OpenSSH(Target("box", ssh_config=write_config(tmp_path, server)))
    way.open()
    assert way.log_out() is False
