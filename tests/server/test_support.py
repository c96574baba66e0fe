"""The tests' own tools: servers that serve, a relay whose faults are those that it names."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.errors import ServerUnfit
from remote.loopback import LoopbackServer, Serving, make_key
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.project import HOSTILE, Executable, Link, make_project, make_tree, snapshot
from tests.support.proxy import Relay
from tests.support.sshd import MakeServer, drop_connections, frozen, sparse_path, ssh

pytestmark = [pytest.mark.timeout(60), pytest.mark.needs("ssh")]


class TestServer:
    def test_runs_a_command_in_its_own_home_and_path(self, each_server: LoopbackServer) -> None:
        done = ssh(each_server, 'echo "$HOME|$PATH"; pwd; echo bad >&2; exit 7')
        assert done.returncode == 7
        home = str(each_server.home)
        assert done.stdout.decode().split("\n")[:2] == [
            f"{home}|{each_server.path}",
            os.path.realpath(home),
        ]
        assert done.stderr == b"bad\n"

    def test_carries_ten_megabytes_unchanged(self, each_server: LoopbackServer) -> None:
        data = os.urandom(10_000_000)
        assert ssh(each_server, "cat", input=data).stdout == data

    def test_passes_the_environment_and_nothing_of_ours(
        self, make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OURS", "secret")
        for embedded in (False, True):
            server = make_server(env={"NAME": """a "b" 'c' $d \\e %h #f"""}, embedded=embedded)
            assert (
                ssh(server, 'printf %s "$NAME|$OURS"').stdout.decode()
                == """a "b" 'c' $d \\e %h #f|"""
            )

    def test_reads_the_login_shells_startup_file_once(self, each_server: LoopbackServer) -> None:
        if os.path.basename(pwd.getpwuid(os.geteuid()).pw_shell) != "bash":
            pytest.skip("only bash reads a file for a remote command")
        (each_server.home / ".bashrc").write_text("echo noise\n")
        assert ssh(each_server, "echo said").stdout == b"noise\nsaid\n"

    def test_leaves_out_what_is_not_linked(self, make_server: MakeServer, tmp_path: Path) -> None:
        server = make_server(path=sparse_path(tmp_path / "few", ["sh", "ls"]))
        assert ssh(server, "tmux -V").returncode == 127
        assert ssh(server, "ls").returncode == 0

    def test_refuses_another_key(self, each_server: LoopbackServer, tmp_path: Path) -> None:
        argv = [
            "ssh",
            "-F",
            each_server.ssh_config,
            "-i",
            make_key(tmp_path / "other"),
            "-o",
            "BatchMode=yes",
        ]
        config = each_server.ssh_config.read_text().replace(
            str(each_server.identity), str(tmp_path / "other")
        )
        argv[2] = tmp_path / "config"
        (tmp_path / "config").write_text(config)
        done = subprocess.run(
            [*map(str, argv), "loopback", "true"], capture_output=True, timeout=30
        )
        assert done.returncode == 255 and b"Permission denied" in done.stderr

    def test_listens_on_loopback_only(self, each_server: LoopbackServer) -> None:
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        port = f"{each_server.port:04X}"
        assert {row[1] for row in listening if row[1].endswith(f":{port}") and row[3] == "0A"} == {
            f"0100007F:{port}"
        }

    def test_starts_quickly_and_ends_with_its_sessions(self, make_server: MakeServer) -> None:
        server = make_server()
        begin = time.monotonic()
        with LoopbackServer(server.directory / "second", Serving(keys=server._keys)) as second:
            assert time.monotonic() - begin < 3
            client = subprocess.Popen(
                ["ssh", "-F", str(second.ssh_config), "loopback", "cat"], stdin=subprocess.PIPE
            )
            assert _eventually(
                lambda: (
                    "Starting session" in second.log_tail() or "Command: cat" in second.log_tail()
                )
            )
        assert client.wait(5) == 255
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((second.host, second.port), timeout=5)

    def test_dropped_sessions_leave_a_server_that_serves(self, each_server: LoopbackServer) -> None:
        with _sleeping(each_server) as client:
            drop_connections(each_server)
            assert client.wait(5) == 255
        assert ssh(each_server, "echo again").stdout == b"again\n"

    def test_a_frozen_session_is_silent_and_goes_on_afterwards(
        self, each_server: LoopbackServer
    ) -> None:
        argv = ["ssh", "-F", str(each_server.ssh_config), "loopback", "cat"]
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        ) as client:
            assert client.stdin and client.stdout
            client.stdin.write(b"a")
            assert client.stdout.read(1) == b"a"
            answer: list[bytes] = []
            reader = threading.Thread(target=lambda: answer.append(client.stdout.read(1)))  # type: ignore[union-attr]
            with frozen(each_server):
                client.stdin.write(b"b")
                reader.start()
                reader.join(0.3)
                assert answer == []
            reader.join(5)
            assert answer == [b"b"]
            client.stdin.close()

    def test_an_unprivileged_account_logs_in(self, unprivileged: LoopbackServer) -> None:
        lines = ssh(unprivileged, "id -u; pwd; touch mine && echo written").stdout.decode().split()
        assert lines[0] != "0"
        assert lines[1:] == [os.path.realpath(unprivileged.home), "written"]

    def test_says_what_sshd_refused(self, make_server: MakeServer) -> None:
        if make_server().kind == "embedded":
            pytest.skip("no sshd here")
        with pytest.raises(ServerUnfit, match="NoSuchSetting"):
            make_server(options={"NoSuchSetting": "yes"})

    def test_options_win_over_ours(self, make_server: MakeServer) -> None:
        if make_server().kind == "embedded":
            pytest.skip("no sshd here")
        done = ssh(make_server(options={"ForceCommand": "echo forced"}), "echo asked")
        assert done.stdout == b"forced\n"


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A TCP server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_echo, args=(listener,), daemon=True).start()
        yield listener.getsockname()


def _echo(listener: socket.socket) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo_one, args=(client,), daemon=True).start()


def _echo_one(client: socket.socket) -> None:
    with client:
        try:
            while data := client.recv(65536):
                client.sendall(data)
        except OSError:
            return


class TestRelay:
    def test_latency_is_paid_once_per_round_trip(self, echo: tuple[str, int]) -> None:
        with (
            Relay(*echo, latency_s=0.02) as relay,
            socket.create_connection((relay.host, relay.port)) as client,
        ):
            took = []
            for _ in range(10):
                begin = time.monotonic()
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                took.append(time.monotonic() - begin)
            assert 0.04 <= min(took) < 0.08  # one of ten is undisturbed on a busy machine too

    def test_latency_does_not_limit_throughput(self, echo: tuple[str, int]) -> None:
        size = 20_000_000
        with (
            Relay(*echo, latency_s=0.05) as relay,
            socket.create_connection((relay.host, relay.port)) as client,
        ):
            begin = time.monotonic()
            threading.Thread(target=client.sendall, args=(bytes(size),)).start()
            assert len(_receive(client, size)) == size
            assert (
                time.monotonic() - begin < 10
            )  # a sleep for each of its 306 chunks would take 15 s
            assert (relay.bytes_up, relay.bytes_down, relay.connections) == (size, size, 1)

    @pytest.mark.parametrize("count", [0, 1, 1000, 300_000])
    def test_a_cut_passes_exactly_n_bytes_and_resets(
        self, echo: tuple[str, int], count: int
    ) -> None:
        with Relay(*echo) as relay, socket.socket() as client:
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, 4096
            )  # a slow reader: bytes wait on their way
            client.connect((relay.host, relay.port))
            relay.cut_after(count, "down")
            threading.Thread(target=_send, args=(client, bytes(400_000)), daemon=True).start()
            time.sleep(0.1)
            received, error = _receive_until_error(client)
            assert (received, type(error)) == (count, ConnectionResetError)
            assert (relay.bytes_down, relay.cuts) == (count, 1)
            with socket.create_connection((relay.host, relay.port)) as second:
                second.sendall(b"again")
                assert _receive(second, 5) == b"again"

    def test_a_repeated_cut_meets_every_connection(self, echo: tuple[str, int]) -> None:
        with Relay(*echo) as relay:
            relay.cut_after(3, "down", repeat=True)
            for _ in range(3):
                with socket.create_connection((relay.host, relay.port)) as client:
                    client.sendall(b"12345")
                    assert _receive_until_error(client)[0] == 3
            assert relay.cuts == 3

    def test_a_stall_holds_one_direction(self, echo: tuple[str, int]) -> None:
        with (
            Relay(*echo) as relay,
            socket.create_connection((relay.host, relay.port), timeout=0.2) as client,
        ):
            relay.stall = "down"
            client.sendall(b"late")
            with pytest.raises(TimeoutError):
                client.recv(4)
            assert relay.bytes_up == 4
            relay.stall = None
            client.settimeout(5)
            assert _receive(client, 4) == b"late"

    def test_refuses_and_serves_again_on_the_same_port(self, echo: tuple[str, int]) -> None:
        with Relay(*echo) as relay:
            relay.refuse = True
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((relay.host, relay.port))
            relay.refuse = False
            with socket.create_connection((relay.host, relay.port)) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"

    def test_ssh_goes_through_it(self, each_server: LoopbackServer) -> None:
        with Relay(each_server.host, each_server.port, latency_s=0.005) as relay:
            route = each_server.via(relay.port)
            assert ssh(route, "echo through").stdout == b"through\n"
            relay.cut_after(2_000_000, "down")
            done = ssh(route, "head -c 9000000 /dev/zero")
            assert done.returncode == 255 and len(done.stdout) < 2_000_000


class TestNvidiaSmi:
    QUERY = ("--format=csv,noheader,nounits",)

    def test_answers_the_fields_asked_for_in_their_order(self, tmp_path: Path) -> None:
        gpus = [FakeGpu(), FakeGpu(name="NVIDIA A100, 'odd' $(x)", memory_used="[N/A]")]
        tool = write_nvidia_smi(tmp_path / "nvidia-smi", gpus, driver="550.54.15")
        out = _run(tool, "--query-gpu=memory.used,index,name,driver_version", *self.QUERY)
        assert out == (
            0,
            (
                "10, 0, NVIDIA H100 80GB HBM3, 550.54.15\n[N/A], 1, NVIDIA A100, 'odd' $(x),"
                " 550.54.15\n"
            ),
        )

    def test_lists_applications_and_refuses_unknown_fields(self, tmp_path: Path) -> None:
        gpu = FakeGpu()
        tool = write_nvidia_smi(
            tmp_path / "nvidia-smi",
            [gpu],
            processes=[(gpu.uuid, 4711, "python", 1024)],
            without=["compute_cap"],
        )
        query = "--query-compute-apps=gpu_uuid,pid,process_name,used_memory"
        assert _run(tool, query, *self.QUERY) == (0, f"{gpu.uuid}, 4711, python, 1024\n")
        code, text = _run(tool, "--query-gpu=index,compute_cap", *self.QUERY)
        assert code == 2 and 'Field "compute_cap" is not a valid field to query.' in text

    @pytest.mark.parametrize(
        "code, word", [(6, "No devices"), (9, "driver"), (15, "lost"), (18, "mismatch")]
    )
    def test_fails_as_asked(self, tmp_path: Path, code: int, word: str) -> None:
        tool = write_nvidia_smi(tmp_path / "nvidia-smi", [FakeGpu()], exit_code=code)
        got, text = _run(tool, "--query-gpu=index", *self.QUERY)
        assert got == code and word in text

    def test_hangs_as_asked(self, tmp_path: Path) -> None:
        tool = write_nvidia_smi(tmp_path / "nvidia-smi", [FakeGpu()], hang=True)
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run([tool], timeout=0.3)


class TestProject:
    def test_hostile_names_arrive_and_compare(self, tmp_path: Path) -> None:
        make_tree(tmp_path / "a", HOSTILE)
        shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
        assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
        assert len(snapshot(tmp_path / "a")) == len(HOSTILE)
        (tmp_path / "b" / "run.sh").chmod(0o644)
        assert snapshot(tmp_path / "a") != snapshot(tmp_path / "b")

    def test_kinds_of_files(self, tmp_path: Path) -> None:
        make_tree(
            tmp_path, {"x/run": Executable("#!/bin/sh\n"), "x/link": Link("run"), "x/empty": ""}
        )
        assert os.readlink(tmp_path / "x/link") == "run"
        assert stat.S_IMODE((tmp_path / "x/run").stat().st_mode) == 0o755
        assert (tmp_path / "x/empty").stat().st_size == 0

    def test_a_project_is_a_committed_repository(self, tmp_path: Path) -> None:
        project = make_project(
            tmp_path / "my project", {"train.py": "print(1)\n"}, settings={"python": "/x/python"}
        )
        listed = subprocess.run(
            ["git", "ls-files"], cwd=project, capture_output=True, text=True, check=True
        ).stdout
        assert {"train.py", "fabric.yaml", ".gitignore"} <= set(listed.split())
        clean = subprocess.run(
            ["git", "status", "--porcelain"], cwd=project, capture_output=True, check=True
        )
        assert clean.stdout == b""


def _run(*argv: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [str(part) for part in argv], capture_output=True, text=True, timeout=10, env={}
    )
    return done.returncode, done.stdout


def _send(client: socket.socket, data: bytes) -> None:
    try:
        client.sendall(data)
    except OSError:
        return


def _receive(client: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (chunk := client.recv(min(65536, size - len(data)))):
        data += chunk
    return bytes(data)


def _receive_until_error(client: socket.socket) -> tuple[int, Exception | None]:
    client.settimeout(10)
    count = 0
    try:
        while chunk := client.recv(65536):
            count += len(chunk)
    except OSError as error:
        return count, error
    return count, None


def _eventually(condition: object, timeout_s: float = 5.0) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class _sleeping:
    """A session that runs `sleep`, once it really does."""

    def __init__(self, server: LoopbackServer) -> None:
        self._server = server

    def __enter__(self) -> subprocess.Popen[bytes]:
        argv = ["ssh", "-F", str(self._server.ssh_config), "loopback", "echo up; exec sleep 60"]
        self._client = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._client.stdout and self._client.stdout.readline() == b"up\n"
        return self._client

    def __exit__(self, *error: object) -> None:
        self._client.kill()
        self._client.wait()
        assert self._client.stdout
        self._client.stdout.close()
