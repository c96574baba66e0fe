"""remote.command: plain words, a shell where its signs need one, our trainer known by what it
is."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.errors import AuthenticationFailed, ConnectionLost, GpuUnfit, RemoteError, UsageError
from remote.link.session import Project
from remote.project.command import (
    describe_command,
    label_of,
    missing_script,
    plan_words,
    shell_signs,
)
from remote.project.options import TrainOptions
from remote.project.own_trainer import runs_own_trainer
from remote.project.settings import parse_settings
from remote.records import Settings
from remote.runs.request import Pending, TrainRequest, parse_request
from tests.support.project import REPOSITORY, Link, make_tree

MEND = "mend fabric.yaml"


@pytest.mark.parametrize(
    ("line", "signs"),
    [
        ("python a.py --lr 0.1", []),
        ("python a.py 'a && b' \"c; d\"", []),
        ("python a.py lr=[1,2] model={a:1} x=~", []),
        ("a \\; b", []),
        ("python a.py && echo done", ["&&"]),
        ("a | tee b", ["|"]),
        ("a; b", [";"]),
        ("a > out 2>&1", [">", "&"]),
        ("LR=0.1 python a.py", ["="]),
        ('python a.py "$HOME"', ["$"]),
        ("python a.py '$HOME'", []),
        ("python a.py data/*.pt", ["*"]),
        ("cat ~/x", ["~"]),
        ("a || b", ["||"]),
        ("a\nb", ["\n"]),
        ("echo `date`", ["`"]),
        ("(a)", ["(", ")"]),
    ],
)
def test_signs_of_a_shell(line: str, signs: list[str]) -> None:
    assert shell_signs(line) == signs


def test_words_go_as_they_are_and_lines_to_bash() -> None:
    assert plan_words("python a.py 'x y'", ["--lr", "0.1"], "/env/python") == [
        "/env/python",
        "a.py",
        "x y",
        "--lr",
        "0.1",
    ]
    words = plan_words("echo a && echo", ["b c", "$d"], "/env/python")
    assert (
        words[0] == "bash"
        and subprocess.run(words, capture_output=True, text=True).stdout == "a\nb c $d\n"
    )
    assert (
        describe_command("LR=1 a | b") == "command: run by bash, because of | a variable before it"
        and describe_command("a b") is None
    )


@pytest.mark.parametrize(
    ("line", "code"),
    [("false | cat", 1), ("echo a; false; true", 0), ("false\ntrue", 1), ("true && true", 0)],
)
def test_what_fails_in_a_shell_fails(line: str, code: int) -> None:
    assert subprocess.run(plan_words(line, (), "python"), capture_output=True).returncode == code


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
        max_size=4,
    )
)
def test_arguments_arrive_as_they_were_typed(arguments: list[str]) -> None:
    words = plan_words("true;", arguments, "python")
    assert shlex.split(words[-1].partition("\n")[2])[1:] == arguments


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("python your_script.py", "your_script.py"),
        ("torchrun --nproc-per-node 2 scripts/no.py --config conf/x.py", "scripts/no.py"),
        ("look.ipynb", "look.ipynb"),
        ("python -u ./train.py other.py", None),
        ("python -m trainer.train no.py", None),
        ("cd scripts && python no.py", None),
        ("python /opt/shared/train.py", None),
        ("mytrain --lr 0.1", None),
    ],
)
def test_a_script_that_is_not_here_is_known(tmp_path: Path, line: str, missing: str | None) -> None:
    (tmp_path / "train.py").touch()
    told = missing_script(line, tmp_path)
    assert told == (missing and (f"remote.command names {missing}, which is not here", MEND))


def test_a_script_that_is_here_and_not_sent_is_known(tmp_path: Path) -> None:
    make_tree(tmp_path, {"src/train.py": "", "link": Link("src")})
    for script, sent in (
        ("./src/train.py", {"src/train.py"}),
        ("link/train.py", {"link", "src/train.py"}),
    ):
        assert missing_script(f"python {script}", tmp_path, sent) is None
        told = missing_script(f"python {script}", tmp_path, {"other.py"})
        assert told and f"names {script}, which is not sent" in told[0] and ".git" in told[1]


def test_an_open_quote_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"remote\.command can't be read"):
        parse_settings({"command": "python 'a.py"}, tmp_path)


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("python train.py", "train"),
        ("torchrun --nproc 2 scripts/main.py --x a.sh", "main"),
        ("python -m pkg.fit --y", "fit"),
        ("LR=1 ./go now", "go"),
        ("make all", "make"),
        ("python 'ä ö.py'", "run"),
    ],
)
def test_a_run_is_called_after_its_script(line: str, label: str) -> None:
    assert label_of(line) == label


def test_a_package_called_trainer_is_not_ours_by_its_name(tmp_path: Path) -> None:
    theirs = make_tree(tmp_path, {"trainer/__init__.py": "", "trainer/train.py": "print('mine')"})
    assert not runs_own_trainer("python -m trainer.train", theirs) and not runs_own_trainer(
        "python -m trainer.train", tmp_path / "none"
    )
    assert runs_own_trainer("python -m trainer.train", REPOSITORY) and not runs_own_trainer(
        "python train.py", REPOSITORY
    )
    project = Project(theirs, Settings(project="p"))
    assert parse_request(project, TrainOptions(arguments=["--lr", "0.1"])).arguments == (
        "--lr",
        "0.1",
    )
    with pytest.raises(UsageError, match="follow `--`"):
        parse_request(project, TrainOptions(set=["a=b"]))
    with pytest.raises(UsageError, match="there is no trainer here"):
        parse_request(Project(tmp_path / "trainer", Settings(project="p")), TrainOptions())


def test_our_trainers_options_behind_the_dashes_are_fields() -> None:
    project = Project(REPOSITORY, Settings(project="p"))
    request = parse_request(
        project, TrainOptions(arguments=["--max_epochs", "3", "--batch_size=64"])
    )
    assert (
        request.fields == (("max_epochs", "3"), ("batch_size", "64")) and request.arguments is None
    )
    with pytest.raises(UsageError, match="--gpus is a number from 1 on"):
        parse_request(project, TrainOptions(gpus=0))
    with pytest.raises(UsageError, match="max_epocs"):
        parse_request(project, TrainOptions(arguments=["--max_epocs", "3"]))
    with pytest.raises(UsageError, match="an option such as --max_epochs 3"):
        parse_request(project, TrainOptions(arguments=["more"]))


@pytest.mark.parametrize(
    ("error", "remembered"),
    [(GpuUnfit, False), (ConnectionLost, True), (AuthenticationFailed, True)],
)
def test_a_launch_is_forgotten_only_where_the_server_has_refused_it(
    tmp_path: Path, error: type[RemoteError], remembered: bool
) -> None:
    """A login that fails while the lost answer is asked for again says nothing of the run."""
    project = Project(tmp_path, Settings())
    pending = Pending(project, "box", TrainRequest(), "tree")
    pending.take()
    pending.write("run")
    with pytest.raises(error), pending.launching():
        raise error("x")
    pending.release()
    assert pending.is_remembered() is remembered
