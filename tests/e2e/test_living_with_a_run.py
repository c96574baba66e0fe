"""What people do while a run trains: go into its tmux, mirror it, and set up a login that asks for
nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from tests.e2e.test_main_job import only_run
from tests.e2e.test_three_commands import FAB, OWN, fab, wait_for
from tests.support.faults import Lab, short_pauses, wait_until
from tests.support.project import make_project
from tests.support.proxy import Relay
from tests.support.sshd import MakeServer
from tests.support.terminal import fab_on_terminal, read_until

WAITS = (
    "echo first line; mkdir -p out; echo 1 > out/a; while [ ! -e ../go ]; do sleep 0.1; done; echo"
    " 2 > out/b; echo last line\n"
)


def run_directory(server: LoopbackServer) -> Path:
    (run,) = (server.home / "projects" / "p" / "runs").glob("2*")
    return run


@pytest.mark.needs("sshd", "ssh", "tmux")
def test_attaching_shows_the_training_and_detaching_leaves_it(
    tmp_path: Path, server: LoopbackServer
) -> None:
    project = make_project(
        tmp_path / "project", {"train.sh": WAITS}, settings=OWN, parts=("fabfile.py", "remote")
    )
    # What lets a login of a person's own do nothing is passed over.
    own = "  SessionType none\n  StdinNull yes\n  RequestTTY no\n"
    server.ssh_config.write_text(server.ssh_config.read_text() + own)
    fab(project, server, "train", "--no-follow")
    begun = server.log.read_text().count("Accepted publickey for")
    leader, process = fab_on_terminal(project, server, "attach")
    read_until(leader, b"first line")
    assert server.log.read_text().count("Accepted publickey for") == begun, "over the kept login"
    time.sleep(
        1
    )  # as a person does: tmux asks the terminal what it is, and takes the next keys for the answer
    os.write(leader, b"\x02d")
    assert b"detached" in read_until(leader, b"detached")
    assert process.wait(20) == 0
    assert json.loads(fab(project, server, "status", "--json").stdout)[0]["state"] == "running"
    (run_directory(server) / "go").touch()
    wait_for(
        lambda: (
            json.loads(fab(project, server, "status", "--json").stdout)[0]["state"] == "finished"
        ),
        20,
    )
    assert (
        "is finished here: there is nothing to attach to"
        in fab(project, server, "attach", code=10).stderr
    )


def test_a_mirror_grows_with_the_run_and_survives_a_dropped_link(
    server: LoopbackServer, tmp_path: Path
) -> None:
    with Relay(server.host, server.port) as relay, short_pauses():
        settings = {
            "requirements": "none",
            "command": "sh train.sh",
            "results": "out",
            "project": "p",
            "timeout_s": 10.0,
        }
        lab = Lab(server, tmp_path, relay, files={"train.sh": WAITS}, settings=settings)
        assert lab.task("train").code == 0
        done = []
        thread = threading.Thread(target=lambda: done.append(lab.task("fetch_results", watch=True)))
        thread.start()
        wait_until(lambda: list(lab.results.rglob("out/a")))
        relay.cut()
        time.sleep(0.3)
        assert not done, "a mirror does not end with its connection"
        relay.mend()
        (run_directory(server) / "go").touch()
        thread.join(60)
    (ended,) = done
    assert (
        ended.code == 0 and "what was fetched stays" in ended.err and "Traceback" not in ended.err
    ), ended
    assert (only_run(lab.project) / "work" / "out" / "b").read_text() == "2\n"
    assert "last line" in (only_run(lab.project) / "train.log").read_text()


def test_tensorboard_shows_the_mirror_and_leaves_nothing_behind(
    tmp_path: Path, server: LoopbackServer
) -> None:
    project = make_project(
        tmp_path / "project", {"train.sh": WAITS}, settings=OWN, parts=("fabfile.py", "remote")
    )
    fab(project, server, "train", "--no-follow")
    leader, process = fab_on_terminal(project, server, "tensorboard", "--no-browser")
    told = read_until(leader, b"/ (Ctrl-C", 90)
    address = re.search(rb"http://127\.0\.0\.1:\d+/", told)
    assert address, told
    with urllib.request.urlopen(address[0].decode(), timeout=20) as page:
        assert b"TensorBoard" in page.read()
    os.write(leader, b"\x03")
    assert b"the training goes on" in read_until(leader, b"stays")
    assert process.wait(20) == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(address[0].decode(), timeout=5)
    assert json.loads(fab(project, server, "status", "--json").stdout)[0]["state"] == "running"
    fab(project, server, "stop")


def test_a_key_that_is_set_up_logs_in_and_is_added_once(
    tmp_path: Path, make_server: MakeServer
) -> None:
    authorized = tmp_path / "server" / "home" / ".ssh" / "authorized_keys"
    server = make_server(
        options={
            "AuthorizedKeysFile": f"{tmp_path}/server/authorized_keys {authorized}",
            "StrictModes": "no",
        }
    )
    if "sshd" not in server.kind:
        pytest.skip("the embedded server has keys of its own")
    project = make_project(
        tmp_path / "project", {"train.sh": "true"}, settings=OWN, parts=("fabfile.py", "remote")
    )
    new = tmp_path / "new"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me@laptop", "-f", new], check=True
    )
    config = tmp_path / "only_new"
    lines = server.ssh_config.read_text().splitlines()
    config.write_text(
        "\n".join(f"  IdentityFile {new}" if "IdentityFile" in line else line for line in lines)
        + "\n"
    )

    def status() -> int:
        argv = [*FAB, "-S", str(config), "-H", "loopback", "status"]
        return subprocess.run(
            argv, cwd=project, capture_output=True, stdin=subprocess.DEVNULL, timeout=60
        ).returncode

    authorized.parent.mkdir(parents=True)
    authorized.write_text(
        "# mine\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOther somebody"
    )  # without a newline at its end
    assert status() == 6
    told = fab(project, server, "-i", str(new), "setup-key").stdout
    assert (
        "added to ~/.ssh/authorized_keys" in told and "later commands ask for no password" in told
    )
    assert status() == 0
    assert "in place already" in fab(project, server, "-i", str(new), "setup-key").stdout
    assert authorized.read_text().splitlines()[:2] == [
        "# mine",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOther somebody",
    ]
    assert (
        len(authorized.read_text().splitlines()) == 3 and authorized.stat().st_mode & 0o777 == 0o600
    )


@pytest.mark.needs("sshd", "ssh-keygen")
def test_a_key_that_the_server_passes_over_is_not_set_up(
    tmp_path: Path, server: LoopbackServer
) -> None:
    """Its sshd reads another file of keys, and the one of ssh_config gets in."""
    project = make_project(
        tmp_path / "project", {"train.sh": "true"}, settings=OWN, parts=("fabfile.py", "remote")
    )
    new = tmp_path / "new"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", new], check=True)
    refused = fab(project, server, "-i", str(new), "setup-key", code=6)
    assert "the server does not take the key" in refused.stderr, refused
    assert "logged in" not in refused.stdout
