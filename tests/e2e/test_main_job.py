"""The main job with the real trainer, against a real sshd: deploy → train → a cut → fetch-results,
and once more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from tests.e2e.test_three_commands import FAB, OWN, fab, wait_for
from tests.support.names import trained_on
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.photos import write_photos
from tests.support.project import commit, make_project, snapshot
from tests.support.proxy import Relay
from tests.support.sshd import MakeServer
from tests.support.terminal import fab_on_terminal, read_until

TINY = ["--set", "widths=8,8,8", "--set", "train_images=1500", "--set", "max_epochs=3"]
RUN_FILES = {
    "run.json",
    "state.json",
    "train.log",
    "progress.json",
    "metrics.csv",
    "summary.json",
    "curves.png",
    "confusion.png",
    "mistakes.png",
    "report.md",
    "weights.pt",
    "logs",
    "checkpoints",
    "source",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


def only_run(project: Path) -> Path:
    return next(path for path in (project / "results").iterdir() if not path.name.startswith("."))


def test_the_main_job_through_a_cut(tmp_path: Path, server: LoopbackServer) -> None:
    project = make_project(
        tmp_path / "project", settings={"python": sys.executable, "project": "p"}
    )
    with Relay(server.host, server.port) as relay:
        route = server.via(relay.port)
        assert "first release" in fab(project, route, "deploy").stdout
        started = fab(
            project, route, "train", "--recipe", "demo", *TINY, "--name", "first", "--no-follow"
        )
        assert "it trains" in started.stdout
        relay.cut()
        wait_for(
            lambda: (
                json.loads(fab(project, server, "status", "--json").stdout)[0]["state"] != "running"
            ),
            120,
        )
        assert json.loads(fab(project, server, "status", "--json").stdout)[0]["state"] == "finished"
        relay.mend()
        fetched = fab(project, route, "fetch-results").stdout
        run = only_run(project)
        summary = json.loads((run / "summary.json").read_text())
        assert (
            f"test accuracy  {100 * summary['test_accuracy']:.2f}%" in fetched
            and str(run) in fetched
        )

        # The second time nothing is done, and that is said.
        again = fab(project, route, "deploy")
        assert "code kept: nothing changed" in again.stdout and "environment kept" in again.stdout
        assert "nothing new to fetch" in fab(project, route, "fetch-results").stdout
    assert {path.name for path in run.iterdir()} == RUN_FILES
    assert snapshot(run / "source")["trainer/train.py"] == snapshot(project)["trainer/train.py"]
    state = json.loads((run / "state.json").read_text())
    assert state["state"] == "finished" and state["exit_code"] == 0
    assert {"host", "boot_id", "pid", "started", "ended"} <= set(state)

    # What came back is what was measured there: the accuracy follows from the files alone.
    for file in ("weights.pt", next((run / "checkpoints").glob("best*.ckpt")).relative_to(run)):
        told = subprocess.run(
            [
                sys.executable,
                "-m",
                "trainer.evaluate",
                "--checkpoint",
                str(run / file),
                "--data",
                "synthetic",
            ],
            cwd=run / "source",
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert told.stdout.splitlines()[0] == f"test_accuracy {summary['test_accuracy']:.4f}", (
            told.stderr
        )


def test_a_second_deploy_leaves_a_running_training_alone(
    tmp_path: Path, server: LoopbackServer
) -> None:
    files = {
        "train.sh": "echo up; while [ ! -e ../go ]; do sleep 0.1; done; cat part.sh; sh part.sh\n",
        "part.sh": "echo old\n",
    }
    project = make_project(
        tmp_path / "project", files, settings=OWN, parts=("fabfile.py", "remote")
    )
    fab(project, server, "train", "--no-follow")
    (project / "part.sh").write_text("echo new\n")
    commit(project, "changed")
    assert "code changed" in fab(project, server, "deploy").stdout
    run = json.loads(fab(project, server, "status", "--json").stdout)[0]["run"]
    (server.home / "projects" / "p" / "runs" / run / "go").touch()
    assert "echo old\nold\n" in fab(project, server, "logs", "--follow").stdout
    fab(project, server, "fetch-results")
    assert (only_run(project) / "source" / "part.sh").read_text() == "echo old\n"


def test_ctrl_c_while_following_leaves_the_training_alone(
    tmp_path: Path, server: LoopbackServer
) -> None:
    files = {"train.sh": "echo first line; sleep 300\n"}
    project = make_project(
        tmp_path / "project", files, settings=OWN, parts=("fabfile.py", "remote")
    )
    leader, process = fab_on_terminal(project, server, "train")
    seen = read_until(leader, b"first line")
    os.write(leader, b"\x03")
    seen += read_until(leader, b"fetch-results")
    assert process.wait(20) == 130
    assert b"the training goes on" in seen and b" follow --run 2" in seen
    assert json.loads(fab(project, server, "status", "--json").stdout)[0]["state"] == "running"
    fab(project, server, "stop")


def test_the_demo_with_images_of_ones_own(tmp_path: Path, photos: Path) -> None:
    """`make demo DATA=dir`: the whole way on a server that it starts itself."""
    project = make_project(tmp_path / "project", settings={"project": "p"})
    done = subprocess.run(
        [*FAB, "demo", "--data", str(photos)],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "synthetic" not in done.stdout and "finished after 4 epochs" in done.stdout
    summary = json.loads((only_run(project) / "summary.json").read_text())
    assert summary["data"]["classes"] == ["blue", "green", "red"] and summary["test_accuracy"] > 0.8
    assert not (photos / "train" / "blue").is_symlink()
    shutil.rmtree(photos / ".decoded", ignore_errors=True)


def test_gpus_are_chosen_pinned_and_watched(tmp_path: Path, server: LoopbackServer) -> None:
    """The busy GPU is passed over with its reason, the free one is pinned by its UUID, its use is
    recorded and shown."""
    busy, free = FakeGpu(memory_used="20000"), FakeGpu(name="NVIDIA A100", utilization="3")
    write_nvidia_smi(
        Path(server.path) / "nvidia-smi",
        [busy, free],
        processes=[(busy.uuid, os.getpid(), "/usr/bin/python3", 19000)],
    )
    files = {"train.sh": "echo pinned $CUDA_VISIBLE_DEVICES order $CUDA_DEVICE_ORDER; sleep 1\n"}
    project = make_project(
        tmp_path / "project", files, settings=OWN, parts=("fabfile.py", "remote")
    )
    deployed = fab(project, server, "deploy").stdout
    assert "NVIDIA A100" in deployed and "of 79.6 GiB" in deployed and ", python3," in deployed
    trained = fab(project, server, "train", "--follow")
    assert f"pinned {free.uuid} order PCI_BUS_ID" in trained.stdout
    assert "gpu 0:" in trained.stderr and "python3" in trained.stderr
    fab(project, server, "fetch-results")
    header, *rows = (only_run(project) / "gpu.csv").read_text().splitlines()
    assert (
        header.startswith("time,index,uuid")
        and all(free.uuid in row and row.endswith(",3,10,81559,70") for row in rows)
        and rows
    )
    assert json.loads(fab(project, server, "status", "--json").stdout)[0]["gpus"] == [free.uuid]
    told = json.loads(fab(project, server, "check-gpu", "--json").stdout)[0]
    assert [gpu["memory_used_mib"] for gpu in told["gpus"]] == [20000, 10]
    both = fab(project, server, "train", "--devices", "1,0", "--follow")
    assert f"pinned {free.uuid},{busy.uuid} " in both.stdout and "gpu 0 is not free" in both.stderr
    assert "there is no gpu 7" in fab(project, server, "train", "--devices", "7", code=9).stderr


def test_the_worst_name_reaches_the_real_trainer_as_it_is(
    tmp_path: Path, server: LoopbackServer, photos: Path
) -> None:
    """benchmarks/faults.py does the same with 20 of the strings that break what quotes badly."""
    name = "-rf 'q\"$(touch pwned1);`touch pwned2` & #{pane_id} *\x1b[31m \\ ünï日本🎉"
    project = make_project(
        tmp_path / "it's $HOME", settings={"python": sys.executable, "project": "p"}
    )
    assert trained_on(name, fab, project, server, photos) == f"{server.home}/{name}"
    assert not [*server.home.rglob("pwned*"), *project.rglob("pwned*")]


def test_handing_in_what_was_trained(tmp_path: Path, server: LoopbackServer, photos: Path) -> None:
    """Pushed to a real repository; whoever clones it can check all of it, with the clone's own code
    and weights."""
    project = make_project(
        tmp_path / "project", settings={"python": sys.executable, "project": "p"}
    )
    fab(
        project,
        server,
        "train",
        "--recipe",
        "demo",
        *TINY[:2],
        "--set",
        "max_epochs=2",
        "--data",
        str(photos),
        "--follow",
    )
    fab(project, server, "fetch-results")
    bare = tmp_path / "bare.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", bare], check=True)
    told = here(project, "submit", "--data", str(photos), "--push", str(bare)).stdout
    accuracy = json.loads((only_run(project) / "summary.json").read_text())["test_accuracy"]
    assert (
        f"{100 * accuracy:.2f}%; from weights.pt again {100 * accuracy:.2f}%" in told
        and f"pushed to {bare}" in told
    )

    # A laptop without torch or the images has it done by the server, with the same figure.
    there = fab(project, server, "submit", "--dest", str(tmp_path / "other")).stdout
    assert f"{100 * accuracy:.2f}%; from weights.pt again {100 * accuracy:.2f}%" in there
    assert "on the server that had trained it" in (tmp_path / "other" / "README.md").read_text()

    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", bare, clone], check=True)
    subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=clone, check=True)
    checked = here(
        project, "verify-submission", "--folder", str(clone), "--data", str(photos)
    ).stdout
    assert f"{100 * accuracy:.2f}% is claimed everywhere, and the weights give it" in checked
    again = [
        sys.executable,
        "-m",
        "trainer.train",
        "--recipe",
        "../recipe.yaml",
        "--data",
        str(photos),
        "--print_config",
    ]
    config = subprocess.run(
        again, cwd=clone / "source", capture_output=True, text=True, check=True
    ).stdout
    assert "max_epochs: 2" in config and "recipe: demo" in config
    page = (clone / "summary.json").read_text()
    (clone / "summary.json").write_text(
        page.replace(f'"test_accuracy": {accuracy}', '"test_accuracy": 0.999')
    )
    assert (
        "README.md: its accuracy is not"
        in here(project, "verify-submission", "--folder", str(clone), code=12).stderr
    )


def here(project: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A task that needs no server."""
    done = subprocess.run(
        [*FAB, *words],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_training_goes_on_on_another_server(
    tmp_path: Path, make_server: MakeServer, photos: Path
) -> None:
    """Stopped here, fetched, and resumed there with what was fetched: the same run, its epochs and
    their history in one piece."""
    project = make_project(
        tmp_path / "project", settings={"python": sys.executable, "project": "p"}
    )
    first, second = make_server(), make_server()
    calm = ("learning_rate=0.01", "bias_learning_rate=0.001", "head_learning_rate=0.01")
    long = [
        word for field in ("widths=8,8,8", "max_epochs=400", *calm) for word in ("--set", field)
    ]
    fab(project, first, "train", "--recipe", "demo", *long, "--data", str(photos), "--no-follow")
    (run,) = (first.home / "projects" / "p" / "runs").glob("2*")
    wait_for(
        lambda: (
            (run / "metrics.csv").exists()
            and len((run / "metrics.csv").read_text().splitlines()) > 3
        ),
        60,
    )
    assert "train --resume" in fab(project, first, "stop").stdout
    fab(project, first, "fetch-results")
    done = len((only_run(project) / "metrics.csv").read_text().splitlines()) - 1
    resumed = fab(
        project,
        second,
        "train",
        "--resume",
        "latest",
        "--set",
        f"max_epochs={done + 2}",
        "--follow",
    )
    assert (
        "sending what was fetched of it" in resumed.stderr and "attempt 2 started" in resumed.stdout
    )
    assert f"finished after {done + 2} epochs" in resumed.stdout
    fab(project, second, "fetch-results")
    rows = (only_run(project) / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, done + 3))
    (told,) = json.loads(fab(project, second, "status", "--json").stdout)
    assert told["run"] == run.name and [attempt["state"] for attempt in told["attempts"]] == [
        "stopped"
    ]
    assert (only_run(project) / "train.log").read_text().count("test_accuracy") == 1
