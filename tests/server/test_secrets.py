"""Secrets stay where they belong: in no log, error, process list or record; what is ours is closed
to other users."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from remote.loopback import LoopbackServer
from tests.e2e.test_three_commands import FAB, fab
from tests.support.faults import Lab, run_task, wait_until
from tests.support.hostile import recording
from tests.support.project import make_project
from tests.support.sshd import MakeServer

SECRET = "hunter2-Zq9"


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def holds(place: Path, secret: str = SECRET) -> list[str]:
    """Files below that hold the secret."""
    return [
        str(file)
        for file in place.rglob("*")
        if file.is_file() and not file.is_symlink() and secret.encode() in file.read_bytes()
    ]


class Listing:
    """Watches every process's command line while the block runs."""

    def __enter__(self) -> Listing:
        self.seen: set[bytes] = set()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.ended.wait(0.02):
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(entry.read_bytes())
                except OSError:
                    continue


def test_env_files_and_keys_are_not_sent_and_that_is_said(
    server: LoopbackServer, tmp_path: Path
) -> None:
    files = {
        "train.sh": "echo up\n",
        ".env": f"TOKEN={SECRET}\n",
        "config/.env.local": SECRET,
        "id_rsa": SECRET,
        "server.key": SECRET,
    }
    lab = Lab(server, tmp_path, files=files)
    with Listing() as listing:
        done = lab.task("train")
        wait_until(lambda: lab.rows()[0]["state"] == "finished")
        fetched = lab.task("fetch_results")
    assert done.code == fetched.code == 0 and "not sent: .env (" in lab.task("deploy").err
    assert holds(server.home) == [] and holds(lab.results) == [] and holds(server.directory) == []
    assert SECRET not in done.out + done.err
    assert not any(SECRET.encode() in line for line in listing.seen) and len(listing.seen) > 10


def test_a_password_shows_nowhere(make_server: MakeServer, tmp_path: Path) -> None:
    """Right and wrong, in a task, its errors, the server's records and all processes' command
    lines."""
    server = make_server(password=SECRET)
    config = Path(server.ssh_config)
    config.write_text(
        config.read_text().replace(str(server.identity), "none").replace('"none"', "none")
    )
    lab = Lab(server, tmp_path)
    with Listing() as listing:
        right = run_with(lab, password=SECRET)
        wrong = run_with(lab, password=SECRET + "x")
    assert not any(SECRET.encode() in line for line in listing.seen) and len(listing.seen) > 5
    assert right.code == 0 and wrong.code == 6, (right, wrong)
    for done in (right, wrong):
        assert SECRET not in done.out + done.err
    assert (
        holds(server.home) == [] and holds(lab.project) == [] and SECRET not in repr(lab.target())
    )


def run_with(lab: Lab, **secrets: Any) -> Any:
    import dataclasses

    target = dataclasses.replace(lab.target(), **secrets)
    assert SECRET not in repr(target)
    return run_task("deploy", lab.project, {**lab.all_settings, "stay_s": 0.0}, target, False)


@pytest.mark.needs("ssh-keygen")
def test_a_passphrase_shows_nowhere(server: LoopbackServer, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    shutil.copy(server.identity, locked)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-N", SECRET, "-f", locked], check=True, capture_output=True
    )
    config = Path(server.ssh_config)
    config.write_text(config.read_text().replace(str(server.identity), str(locked)))
    lab = Lab(server, tmp_path)
    right = run_with(lab, passphrase=SECRET)
    wrong = run_with(lab, passphrase=SECRET + "x")
    assert (right.code, wrong.code) == (0, 6)
    assert SECRET not in right.out + right.err + wrong.out + wrong.err
    assert holds(server.home) == [] and holds(lab.project) == []


def test_an_indexs_password_shows_nowhere(server: LoopbackServer, tmp_path: Path) -> None:
    """The server's pip has an index with a password; the build fails, and its log, record and error
    hold no password."""
    pip = server.home / ".config" / "pip" / "pip.conf"
    pip.parent.mkdir(parents=True)
    pip.write_text(f"[global]\nindex-url = http://me:{SECRET}@127.0.0.1:9/simple\nretries = 0\n")
    pip.parent.parent.chmod(0o700)
    lab = Lab(
        server,
        tmp_path,
        files={"train.sh": "echo up\n", "r.txt": "demo-pkg\n"},
        settings={"requirements": "r.txt"},
    )
    heard: dict[str, list[tuple[dict[str, Any], bytes]]] = {}
    with Listing() as listing, recording(heard):
        done = lab.task("deploy")
    assert "environment_inspect" in heard and SECRET not in repr(heard)
    assert done.code == 8 and len(done.error_lines) == 1, done
    assert SECRET not in done.out + done.err
    assert holds(lab.root) == []
    assert not any(SECRET.encode() in line for line in listing.seen)


def test_all_that_is_ours_is_closed_to_other_users(server: LoopbackServer, tmp_path: Path) -> None:
    """The root is 0700, and so would be what lies in it if somebody opened the root."""
    lab = Lab(server, tmp_path)
    assert lab.task("train").code == 0
    wait_until(lambda: lab.rows()[0]["state"] == "finished")
    assert lab.root.stat().st_mode & 0o777 == 0o700
    (run,) = (lab.root / "runs").glob("2*")
    private = [
        path
        for pattern in ("*.json", "agent/*", "env/*/*.json", "releases/*.json")
        for path in lab.root.glob(pattern)
    ]
    private += run.glob("*")
    assert len(private) > 8
    for path in private:
        assert path.stat().st_mode & 0o077 == 0, path


def test_what_is_told_for_a_report_holds_no_secrets(server: LoopbackServer, tmp_path: Path) -> None:
    """REMOTE_DEBUG: the login, the operations and their times."""
    project = make_project(
        tmp_path / "project",
        {"a.sh": "echo up\n"},
        settings={"requirements": "none", "command": "sh a.sh", "project": "p"},
        parts=("fabfile.py", "remote"),
    )
    address = "http://127.0.0.1:9/hook-with-a-secret"
    done = fab(
        project, server, "train", "--no-follow", "--notify", address, env={"REMOTE_DEBUG": "1"}
    )
    steps = ["ssh: Authenticated to"] if shutil.which("ssh") else []
    for told in (
        "settings read after",
        *steps,
        "the agent speaks",
        "facts answered after",
        "run_start answered after",
    ):
        assert told in done.stderr, told
    assert "hook-with-a-secret" not in done.stderr + done.stdout
    assert "answered after" not in fab(project, server, "status").stderr
    words = ("--debug", "--prompt-for-login-password", "--prompt-for-passphrase")
    argv = [*FAB, *words, "-S", str(server.ssh_config), "-H", "loopback", "status"]
    debugged = subprocess.run(
        argv, cwd=project, capture_output=True, text=True, input="hunter2\nhunter3\n", timeout=60
    )
    assert debugged.returncode == 0 and "runs answered after" in debugged.stderr, debugged
    assert "hunter" not in debugged.stderr + debugged.stdout


@pytest.fixture
def commoner(unprivileged: LoopbackServer) -> LoopbackServer:
    """An account that is not root, with a python that it may execute."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    python = Path(unprivileged.path, "python3")
    if not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("no python that everybody may execute")
    python.unlink(missing_ok=True)
    python.symlink_to("/usr/bin/python3")
    return unprivileged


@pytest.mark.needs("tmux")
def test_another_user_reads_nothing_and_hijacks_nothing(
    commoner: LoopbackServer, tmp_path: Path
) -> None:
    """As `nobody`: the run can't be read, nor its tmux be talked to."""
    lab = Lab(commoner, tmp_path, files={"train.sh": "echo up; sleep 30\n"})
    assert lab.task("train").code == 0
    (run,) = (lab.root / "runs").glob("2*")

    def as_nobody(*argv: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *argv],
            capture_output=True,
        )

    assert as_nobody("ls", "/").returncode == 0
    for path in (lab.root, run, run / "run.json", run / "train.log"):
        assert as_nobody("cat", str(path)).returncode and as_nobody("ls", str(path)).returncode
    uid = run.stat().st_uid
    assert uid != 0
    sockets = list(Path(f"/tmp/tmux-{uid}").glob("run-*"))
    assert sockets and Path(f"/tmp/tmux-{uid}").stat().st_mode & 0o077 == 0
    assert as_nobody("tmux", "-S", str(sockets[0]), "ls").returncode
    pid = json.loads((run / "state.json").read_text())["pid"]
    assert as_nobody("cat", f"/proc/{pid}/environ").returncode
    assert lab.task("stop").code == 0


def test_nothing_of_ours_passes_through_tmp(make_server: MakeServer, tmp_path: Path) -> None:
    """Not on a first visit either, when the agent has no other place yet."""
    shared = tmp_path / "tmp"
    shared.mkdir()
    server = make_server(env={"TMPDIR": str(shared)})
    names: set[str] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            names.update(path.name for path in shared.iterdir())

    thread = threading.Thread(target=watch)
    thread.start()
    for number in range(5):
        assert Lab(server, tmp_path, name=f"p{number}").task("status").code == 0
    ended.set()
    thread.join()
    assert names == set()


@pytest.mark.needs("tmux")
def test_a_tmux_directory_that_somebody_else_made_is_not_used(
    commoner: LoopbackServer, tmp_path: Path
) -> None:
    """/tmp/tmux-<uid> made beforehand by another user: tmux refuses it, the run starts without
    tmux, and says so."""
    lab = Lab(commoner, tmp_path, files={"train.sh": "echo up\n"})
    assert lab.task("deploy").code == 0
    place = Path(f"/tmp/tmux-{lab.root.stat().st_uid}")
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(mode=0o777)
    try:
        os.chown(place, 65534, 65534)
        done = lab.task("train")
        assert done.code == 0 and "setsid" in done.out + done.err, done
        assert "tmux did not start" in done.err
        assert list(place.iterdir()) == []
    finally:
        shutil.rmtree(place)


def test_the_records_of_a_run_hold_no_environment(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens in the laptop's environment (WANDB_API_KEY and the like) go nowhere."""
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WEBHOOK_URL", f"https://hooks.example.org/{SECRET}")
    lab = Lab(server, tmp_path, files={"train.sh": "env\n"})
    assert lab.task("train").code == 0
    wait_until(lambda: lab.rows()[0]["state"] == "finished")
    assert lab.task("fetch_results").code == 0
    assert holds(server.home) == [] and holds(lab.results) == []


def test_a_python_in_a_closed_folder_is_not_called_missing(
    commoner: LoopbackServer, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "python").symlink_to("/usr/bin/python3")
    settings = {"python": f"{closed}/python"}
    lab = Lab(commoner, tmp_path, files={"train.sh": "true\n"}, settings=settings)
    done = lab.task("deploy")
    assert done.code and "lies in a folder that is closed to" in done.err, done
