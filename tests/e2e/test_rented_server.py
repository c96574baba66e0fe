"""What a rented box asks for: images that it can't download, a check of everything, and an end of
the bill."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import threading
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from tests.e2e.test_main_job import only_run
from tests.e2e.test_three_commands import OWN, fab, wait_for
from tests.e2e.test_what_is_typed import alone
from tests.support.project import make_project, make_tree
from tests.support.proxy import Relay
from tests.support.terminal import fab_on_terminal, read_until

TELLS = (
    'echo "argv: $*"; mkdir -p "$REMOTE_RUN_DIR/checkpoints"; echo {} >'
    ' "$REMOTE_RUN_DIR/summary.json"\n'
)
ARCHIVE = "cifar-10-python.tar.gz"


@pytest.fixture
def trainer_project(tmp_path: Path) -> tuple[Path, bytes]:
    """A project whose own trainer takes a small file for the archive, to be had from nowhere; and
    that file's content."""
    content = b"\x1f\x8b" + os.urandom(200_000)
    settings = {"requirements": "none", "command": "sh train.sh trainer.train", "project": "p"}
    project = make_project(
        tmp_path / "project",
        {"train.sh": TELLS},
        settings=settings,
        parts=("fabfile.py", "remote", "trainer"),
    )
    module = project / "trainer" / "data" / "archive.py"
    text = module.read_text()
    text = re.sub(
        r'ARCHIVE_MD5 = ".*"', f'ARCHIVE_MD5 = "{hashlib.md5(content).hexdigest()}"', text
    )
    text = re.sub(r"ARCHIVE_BYTES = .*", f"ARCHIVE_BYTES = {len(content)}", text)
    module.write_text(
        re.sub(r'ARCHIVE_URL = ".*"', f'ARCHIVE_URL = "http://127.0.0.1:9/{ARCHIVE}"', text)
    )
    return project, content


CPU = ("--recipe", "standard", "--set", "accelerator=cpu")


def test_a_server_that_can_not_download_is_offered_the_archive(
    trainer_project: tuple[Path, bytes], tmp_path: Path, server: LoopbackServer
) -> None:
    project, content = trainer_project
    home = {"HOME": str(make_tree(tmp_path / "me", {"x": ""}))}
    nowhere = fab(project, server, "train", *CPU, "--no-follow", code=11, env=home)
    assert "can't download it" in nowhere.stderr and f"upload-data {ARCHIVE}" in nowhere.stderr
    assert nowhere.stderr.count("error: ") == 1 and nowhere.stderr.splitlines()[-1].startswith(
        "error: "
    )
    assert json.loads(fab(project, server, "status", "--json").stdout) == [], "no run was made"

    make_tree(project / "data", {ARCHIVE: content})
    nobody = fab(project, server, "train", *CPU, "--no-follow", code=11, env=home)
    assert f"upload-data {project / 'data' / ARCHIVE}" in nobody.stderr
    leader, process = fab_on_terminal(project, server, "train", *CPU, "--no-follow")
    read_until(leader, b"once for all runs? [y/N]")
    os.write(leader, b"y\n")
    assert b"it trains" in read_until(leader, b"fetch-results\r\n", 60) and process.wait(20) == 0
    there = server.home / "projects" / "p" / "data" / ARCHIVE
    assert there.read_bytes() == content
    # From now on nobody asks, and the run was told where they lie.
    again = fab(project, server, "train", *CPU, "--follow")
    assert f"--data {there.resolve()}" in again.stdout and "can't download" not in again.stderr
    by_name = fab(project, server, "train", *CPU, "--data", ARCHIVE, "--follow")
    assert f"--data {there.resolve()}" in by_name.stdout


def test_pretrained_weights_that_a_server_can_not_download_are_offered_as_well(
    trainer_project: tuple[Path, bytes], tmp_path: Path, server: LoopbackServer
) -> None:
    project, _ = trainer_project
    module = project / "remote" / "agent" / "shared" / "weights.py"
    module.write_text(
        module.read_text().replace("https://download.pytorch.org", "http://127.0.0.1:9")
    )
    me = tmp_path / "me" / ".cache" / "torch" / "hub" / "checkpoints"
    home = {
        "HOME": str(make_tree(tmp_path / "me", {"x": ""})),
        "XDG_CACHE_HOME": "",
        "TORCH_HOME": "",
    }
    words = ("train", "--recipe", "finetune", "--data", "synthetic")
    nowhere = fab(project, server, *words, "--no-follow", code=11, env=home)
    assert "weights of torchvision:efficientnet_b0 are not on the server" in nowhere.stderr
    assert "--name torchvision-efficientnet_b0.pth" in nowhere.stderr

    here = make_tree(me, {"efficientnet_b0_rwightman-7f5810bc.pth": b"weights"})
    file = here / "efficientnet_b0_rwightman-7f5810bc.pth"
    nobody = fab(project, server, *words, "--no-follow", code=11, env=home)
    send = f"upload-data {file} --name torchvision-efficientnet_b0.pth"
    assert send in nobody.stderr
    fab(project, server, *send.split(), env=home)
    there = server.home / "projects" / "p" / "data" / "torchvision-efficientnet_b0.pth"
    assert there.read_bytes() == b"weights"
    told = fab(project, server, *words, "--follow", env=home)
    assert f"--set pretrained={there}" in told.stdout and "can't download" not in told.stderr
    # What lies in the library's own cache there needs neither.
    shutil.rmtree(there.parent)
    make_tree(server.home / ".cache/torch/hub/checkpoints", {file.name: b"weights"})
    cached = fab(project, server, *words, "--follow", env=home)
    assert "pretrained=" not in cached.stdout and "can't download" not in cached.stderr


def test_what_the_trainer_could_not_read_is_not_sent(
    trainer_project: tuple[Path, bytes], tmp_path: Path, server: LoopbackServer
) -> None:
    project, content = trainer_project
    make_tree(
        tmp_path,
        {
            "page.tar.gz": b"<html>not found</html>",
            "cut.tar.gz": content[:-9],
            "photos/notes.txt": "p",
        },
    )
    for name, told in (
        ("page.tar.gz", "is a web page"),
        ("cut.tar.gz", "is truncated"),
        ("photos", "holds neither CIFAR-10 nor train/"),
    ):
        done = fab(project, server, "upload-data", str(tmp_path / name), code=2)
        assert told in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (server.home / "projects").exists()


def test_the_bill_ends_only_when_everything_is_here(tmp_path: Path, server: LoopbackServer) -> None:
    script = (
        "mkdir -p out; head -c 100000 /dev/urandom > out/weights; while [ -e ../wait ]; do sleep"
        " 0.1; done; echo done\n"
    )
    mark = tmp_path / "was-shut-down"
    settings = {**OWN, "shutdown": f"touch {shlex.quote(str(mark))}"}
    project = make_project(
        tmp_path / "project",
        {"train.sh": script},
        settings=settings,
        parts=("fabfile.py", "remote"),
    )
    for name in ("first", "second"):
        fab(project, server, "train", "--no-follow", "--name", name)
        wait_for(
            lambda: all(
                row["state"] == "finished"
                for row in json.loads(fab(project, server, "status", "--json").stdout)
            )
        )
    asked = fab(project, server, "fetch-results", "--then-shutdown", code=2)
    assert "only after a confirmation" in asked.stderr and not mark.exists()
    runs = [path for path in (project / "results").iterdir() if not path.name.startswith(".")]
    assert len(runs) == 2, "everything is here, not only the run that was named"

    fab(project, server, "train", "--no-follow", "--name", "third")
    third = next(
        row
        for row in json.loads(fab(project, server, "status", "--json").stdout)
        if row["name"] == "third"
    )
    there = server.home / "projects" / "p" / "runs" / third["run"]
    leader, process = fab_on_terminal(project, server, "fetch-results", "--then-shutdown")
    seen = read_until(leader, b"[y/N]", 60)
    assert b"3 runs are here" in seen and b"Shut loopback down" in seen and not mark.exists()
    assert (project / "results" / third["run"] / "work/out/weights").read_bytes() == (
        there / "work/out/weights"
    ).read_bytes()
    os.write(leader, b"n\n")
    assert (
        b"left running; everything is here" in read_until(leader, b"everything is here\r\n")
        and process.wait(20) == 0
    )
    assert not mark.exists()


def test_a_server_that_goes_is_seen_to_go(tmp_path: Path, server: LoopbackServer) -> None:
    project = make_project(
        tmp_path / "project", {"train.sh": "true\n"}, settings=OWN, parts=("fabfile.py", "remote")
    )
    fab(project, server, "train", "--no-follow")
    refused = fab(
        project,
        server,
        "fetch-results",
        "--then-shutdown",
        "--yes",
        code=7,
        env={"FABRIC_REMOTE_SHUTDOWN": "echo no; exit 3"},
    )
    assert (
        "`echo no; exit 3` failed (exit code 3): no" in refused.stderr
        and "remote.shutdown" in refused.stderr
    )
    mark = tmp_path / "mark"
    with Relay(server.host, server.port) as relay:

        def go() -> None:
            wait_for(mark.exists)
            relay.refuse = True
            relay.cut()

        thread = threading.Thread(target=go)
        thread.start()
        environment = {"FABRIC_REMOTE_SHUTDOWN": f"touch {shlex.quote(str(mark))}"}
        told = fab(
            project,
            server.via(relay.port),
            "fetch-results",
            "--then-shutdown",
            "--yes",
            env=environment,
        )
        thread.join()
    assert "loopback: shut down" in told.stdout


def test_a_run_that_goes_on_keeps_the_server(tmp_path: Path, server: LoopbackServer) -> None:
    script = "echo up; while [ ! -e ../go ]; do sleep 0.1; done\n"
    mark = tmp_path / "mark"
    settings = {**OWN, "shutdown": f"touch {shlex.quote(str(mark))}"}
    project = make_project(
        tmp_path / "project",
        {"train.sh": script},
        settings=settings,
        parts=("fabfile.py", "remote"),
    )
    for name in ("a", "b"):
        fab(project, server, "train", "--no-follow", "--name", name)
    a, _ = sorted(row["run"] for row in json.loads(fab(project, server, "status", "--json").stdout))
    (server.home / "projects" / "p" / "runs" / a / "go").touch()
    done = fab(project, server, "fetch-results", "--run", "a", "--then-shutdown", "--yes", code=10)
    assert "is running: the server was not shut down" in done.stderr and not mark.exists()
    fab(project, server, "stop", "--run", "b")


def test_the_doctor_tells_what_is_well_and_what_is_not(
    tmp_path: Path, server: LoopbackServer
) -> None:
    project = make_project(
        tmp_path / "project",
        {"train.sh": "true\n", ".env": "A=1"},
        settings=OWN,
        parts=("fabfile.py", "remote"),
    )

    def doctor(code: int, **variables: str) -> str:
        return alone(project, "doctor", code=code, **variables)

    wrong = doctor(2, FABRIC_REMOTE_COMMAND="python your_script.py")
    assert "names your_script.py, which is not here" in wrong
    wrong = doctor(2, FABRIC_REMOTE_REQUIREMENTS="none.txt", FABRIC_REMOTE_ENV="NOWHERE_SET")
    assert "packages     none.txt" in wrong
    assert "variables    remote.env NOWHERE_SET: there is no such variable here" in wrong
    (project / "pyproject.toml").write_text(
        '[project]\nname = "p"\nversion = "1"\noptional-dependencies = {train = []}\n'
    )
    doctor(0, FABRIC_REMOTE_REQUIREMENTS="pyproject.toml[train]")
    (project / "pyproject.toml").unlink()
    here = doctor(0)
    assert "this computer:\n  ok       python " in here and ".env (looks like a secret)" in here
    told = fab(project, server, "doctor").stdout
    for part in (
        "\nloopback:\n  ok       login ",
        "by key",
        "  ok       disk ",
        "the next deploy makes it",
        "runs         none yet",
        "gpu",
    ):
        assert part in told, told
    assert not (server.home / "projects").exists(), "it changes nothing"
    rows = json.loads(fab(project, server, "doctor", "--json").stdout)
    assert {row["level"] for row in rows} <= {"ok", "warning"} and {
        row["where"] for row in rows
    } == {"here", "loopback"}
    assert all(row["remedy"] for row in rows if row["level"] != "ok")

    needs = {"FABRIC_REMOTE_DATA": "photos/small"}
    lacking = fab(project, server, "doctor", code=11, env=needs).stdout
    assert "remote.data names photos/small, which is not there" in lacking, lacking
    fab(project, server, "deploy")
    make_tree(project / "results" / "20260101-000000-x", {"run.json": "{}"})
    told = fab(project, server, "doctor").stdout
    assert "no torch is required" in told and "fetched runs" not in told, told
    make_tree(
        server.home / "projects" / "p", {"project.json": '{"project": "other", "identity": null}'}
    )
    other = fab(project, server, "doctor", code=7).stdout
    assert "problem  root " in other and "belongs to the project 'other'" in other
    down = tmp_path / "down"
    down.write_text("Host loopback\n  HostName 127.0.0.1\n  Port 1\n")
    server.ssh_config.write_text(down.read_text())
    assert "problem  login " in fab(project, server, "doctor", code=3).stdout


def test_weights_are_evaluated_on_the_server_for_a_laptop_without_the_images(
    tmp_path: Path, server: LoopbackServer
) -> None:
    """With a stand-in for the trainer's evaluation; test_main_job.py hands in what the real one has
    measured."""
    told = {"test_accuracy": 0.9123, "test_images": 10, "data_sha256": "ab" * 32}
    summary = {
        "test_accuracy": 0.9123,
        "test_images": 10,
        "data": {"sha256": "ab" * 32},
        "config": {"data": "synthetic"},
    }
    script = (
        'cd "$REMOTE_RUN_DIR"; printf weights > weights.pt; echo'
        f" {shlex.quote(json.dumps(summary))} > summary.json\n"
    )
    evaluate = (
        f"import json, os, sys\nprint(json.dumps({told!r}))\nopen(os.environ['HOME'] + '/argv',"
        " 'w').write(repr(sys.argv))\n"
    )
    files = {"train.sh": script, "trainer/__init__.py": "", "trainer/evaluate.py": evaluate}
    project = make_project(
        tmp_path / "project", files, settings=OWN, parts=("fabfile.py", "remote")
    )
    fab(project, server, "train", "--follow")
    fab(project, server, "fetch-results")
    done = fab(project, server, "submit")
    assert "91.23%; from weights.pt again 91.23%" in done.stdout
    assert (
        json.loads((project / "submission" / "evaluation.json").read_text())["where"]
        == "on the server"
    )
    run = only_run(project)
    assert "'--data', 'synthetic', '--json'" in (server.home / "argv").read_text()
    assert not list((server.home / "projects" / "p" / "releases").rglob("*.pyc")), (
        "a release never changes"
    )

    there = server.home / "projects" / "p" / "runs" / run.name
    (there / "weights.pt").write_bytes(b"others!")
    assert "are not those that were fetched" in fab(project, server, "submit", code=12).stderr
    (there / "weights.pt").write_bytes(b"weights")
    assert (
        "the images are not at /nowhere"
        in fab(project, server, "submit", "--data", "/nowhere", code=11).stderr
    )
    (run / "summary.json").write_text(json.dumps({**summary, "test_accuracy": 0.95}))
    assert (
        "the weights give 91.23%, and the run claims 95.00%"
        in fab(project, server, "submit", code=12).stderr
    )
