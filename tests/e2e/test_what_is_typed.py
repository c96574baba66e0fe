"""What is typed behind `fab`, right or wrong, where no server is asked."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.e2e.test_three_commands import FAB, OWN
from tests.support.project import make_project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project", {}, settings=OWN, parts=("fabfile.py", "remote"))


def alone(project: Path, *words: str, code: int, **environment: str) -> str:
    """fab without a server; what it says on stderr and stdout."""
    done = subprocess.run(
        [*FAB, *words],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done.stderr + done.stdout


def test_the_list_of_tasks_is_grouped_and_fits(project: Path) -> None:
    listed = alone(project, "--list", code=0)
    assert listed.startswith("Three commands:\n  deploy ") and alone(project, code=0) == listed
    assert [line.split()[0] for line in listed.splitlines()[1:4]] == [
        "deploy",
        "train",
        "fetch-results",
    ]
    assert max(map(len, listed.splitlines())) <= 80
    assert all(
        re.match(r"  [a-z-]+ +[A-Z].*\.$", line) for line in listed.splitlines() if line[:1] == " "
    )


def test_whoever_reads_the_list_may_go_away(project: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([*FAB, "--list"], cwd=project, stdout=pipe, stderr=pipe) as listing:
        assert listing.stdout and listing.stderr
        listing.stdout.close()
        assert listing.stderr.read() == b"" and listing.wait(20) == 0


def test_tasks_of_one_s_own_are_listed_and_run(project: Path) -> None:
    with open(project / "fabfile.py", "a") as fabfile:
        fabfile.write(
            "from invoke.tasks import task\n"
            "@task\ndef mine(c):\n    'Does something.'\n    print('done')\n"
            "ns.add_task(mine)\n"
        )
    assert "Of this fabfile:\n  mine               Does something.\n" in alone(
        project, "--list", code=0
    )
    assert alone(project, "mine", code=0) == "done\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "there is no task trian (did you mean train?); fab --list shows them"),
        (["fetch"], "there is no task fetch (did you mean fetch-results?); fab --list shows them"),
        (["init"], "init is no task: python -m remote init [FOLDER]"),
        (["logs", "20261128-x"], "there is no task 20261128-x; is --run 20261128-x meant?"),
        (["train", "--set", "a=1", "b=2"], "there is no task b=2; is --set b=2 meant?"),
        (["deploy", "-H", "gpu"], "-H goes before the task: fab -H gpu deploy"),
        (["status", "-i", "key"], "-i goes before the task: fab -i … status"),
        (["train", "-H"], "-H goes before the task: fab -H … train"),
        (["-h", "gpu", "train"], "there is no task gpu; is -H gpu meant?"),
        (["-H", "me@gpu", "-p", "22", "train"], "there is no task 22; is -H me@gpu:22 meant?"),
        (
            ["help", "train"],
            "help is no task: fab --list shows them, fab TASK --help tells a task's options",
        ),
        (
            ["train", "--epochs", "3"],
            "train has no option --epochs; the training's own follow --: fab train -- --epochs …",
        ),
        (["logs", "--run"], "--run needs a value — fab logs --help tells its options"),
        (["train", "--env"], "--env needs a value — fab train --help tells its options"),
        (
            ["sweep", "--grid", "a=1", "--set", "--name", "x"],
            "--set needs a value — fab sweep --help tells its options",
        ),
        (["train", "--gpus", "two"], "'two' is no number — fab train --help tells its options"),
        (["-H", "gpu", "upload-data"], "upload-data needs PATH: fab -H gpu upload-data PATH"),
        (
            ["train", "--recpie", "x"],
            "train has no option --recpie (did you mean --recipe?); fab train --help lists them",
        ),
    ],
)
def test_a_mistyped_line_is_one_line_and_exit_2(project: Path, words: list[str], said: str) -> None:
    assert alone(project, *words, code=2) == f"error: {said}\n"


@pytest.mark.parametrize(
    ("words", "sign"),
    [
        ("-H gpu -R clean --yes", "--dry"),
        ("-H gpu clean --yes --dry", "--dry"),
        ("-H gpu -w status", "--warn-only"),
    ],
)
def test_an_option_that_would_promise_something_untrue_is_refused(
    project: Path, words: str, sign: str
) -> None:
    shown = alone(project, *words.split(), code=2)
    assert f"takes no {sign}, and nothing was done" in shown and len(shown.splitlines()) == 1


@pytest.mark.parametrize("task", [["status"], ["status", "--json"], ["train"]])
def test_a_password_in_a_host_is_refused_and_not_shown(project: Path, task: list[str]) -> None:
    shown = alone(project, "-H", "me:hunter2@gpu:22", *task, code=2)
    assert "hunter2" not in shown and "write -H me@gpu:22" in shown


@pytest.mark.parametrize("words", ["train", "sweep --grid a=1,2 -- {a}"])
@pytest.mark.parametrize("name", ["latest", "all"])
def test_a_name_that_means_something_else_is_refused(project: Path, words: str, name: str) -> None:
    task, *rest = words.split()
    shown = alone(project, "-H", "gpu", task, "--name", name, *rest, code=2)
    assert f"not latest or all: '{name}'" in shown


def test_help_tells_values_and_defaults(project: Path) -> None:
    assert "--set=STRING" in alone(project, "train", "--help", code=0)
    shown = " ".join(alone(project, "logs", "--help", code=0).split())
    assert "(default: 40)" in shown and "(default: latest)" in shown


@pytest.mark.parametrize(
    "words",
    ["keep", "stop --sweep x", "status --sweep x", "follow", "logs", "sweep --grid a=1 -- {a}"],
)
def test_a_server_that_is_down_is_told_by_every_task(project: Path, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for hosts in (f"127.0.0.1:{port}", f"127.0.0.1:{port},localhost:{port}"):
        shown = alone(project, "-H", hosts, *words.split(), code=3)
        assert f"error: 127.0.0.1:{port}, connect: " in shown and "refuses connections" in shown
        assert "its part goes to the others" not in shown


def test_one_line_may_hold_several_tasks(project: Path) -> None:
    """The next one begins where the one before it has ended well, and not after an error."""
    hosts = ("-H", "127.0.0.1:1")
    both = alone(project, *hosts, "logout", "keep", code=3)
    assert "no login was kept" in both and "refuses connections" in both
    assert "no login was kept" not in alone(project, *hosts, "keep", "logout", code=3)


@pytest.mark.parametrize("option", ["--watch", "--then-shutdown"])
def test_a_sweep_is_not_fetched_for_ever(project: Path, option: str) -> None:
    words = ("-H", "gpu", "fetch-results", "--sweep", "rates", option)
    assert "go without it" in alone(project, *words, code=2)


def test_the_demo_is_refused_at_once_where_there_is_nothing_to_train(project: Path) -> None:
    shown = alone(project, "demo", code=2)
    assert "there is none in this project" in shown and len(shown.splitlines()) == 1


@pytest.mark.parametrize("begun", ["upload-data", "upload-data pho", "-H gpu upload-data"])
def test_the_tab_key_leaves_files_to_the_shell(project: Path, begun: str) -> None:
    assert alone(project, "--complete", "--", "fab", *begun.split(), code=0) == ""
    assert "deploy" in alone(project, "--complete", "--", "fab", "dep", code=0)


def test_help_of_a_task_that_needs_a_path(project: Path) -> None:
    shown = alone(project, "upload-data", "--help", code=0)
    assert "Send data to the server once" in shown and "--path" in shown


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("remote:\n\tproject: x\n", "fabric.yaml line 2, column 1: a tab stands where spaces"),
        ("remote:\n  project: [x\n", "fabric.yaml line 3"),
        ("remote: hello\n", "settings stand as `key: value`"),
    ],
)
def test_a_fabric_yaml_that_is_none_is_one_line(project: Path, yaml: str, said: str) -> None:
    (project / "fabric.yaml").write_text(yaml)
    shown = alone(project, "status", code=2)
    assert said in shown and len(shown.splitlines()) == 1
