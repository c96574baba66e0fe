"""Handing in: what goes into a bundle, what stops it, and what a check of one finds."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest

from remote.errors import NotFound, TransferFailed, UsageError
from remote.project.options import SubmitOptions
from remote.project.results import find_run
from remote.screen.display import Display
from remote.submission import bundle, evaluation, submit
from tests.support.desk import RUN, Desk, measured
from tests.support.project import make_tree

pytestmark = pytest.mark.usefixtures("nobody")


def test_a_bundle_is_a_repository_that_says_what_it_claims(desk: Desk) -> None:
    assert desk.submit() == 0 and "91.23%" in desk.told
    page = (desk.dest / "README.md").read_text()
    assert page.startswith("# Image classification: 91.23% accuracy on the test set\n")
    for part in (
        "| cat | 85.00% |",
        "| dog | – |",
        "gpu 0: H100",
        "torch 2.14.1",
        "1 min 15 s",
        "curves.png",
        "sha256sum -c SHA256SUMS",
    ):
        assert part in page, part
    log = subprocess.run(
        ["git", "log", "--format=%an %s %D"], cwd=desk.dest, capture_output=True, text=True
    ).stdout
    assert log == "submission 91.23% on the test set HEAD -> main\n"
    assert (
        subprocess.run(
            ["git", "status", "--porcelain", "--ignored"],
            cwd=desk.dest,
            capture_output=True,
            text=True,
        ).stdout
        == ""
    )
    assert "learning_rate: 1e-05" in (desk.dest / "recipe.yaml").read_text()
    assert "wang" not in "".join(
        path.read_text()
        for path in desk.dest.glob("*.*")
        if path.suffix in (".md", ".json", ".log", ".yaml")
    )
    assert (
        subprocess.run(
            ["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=desk.dest
        ).returncode
        == 0
    )
    assert desk.verify() == ""
    assert not list(desk.dest.parent.glob(".submission-*"))


def test_a_bundle_for_scripts(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    options = SubmitOptions(dest=str(desk.dest), data="synthetic")
    assert submit.submit(desk.project, Display(json_mode=True), None, options) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(desk.dest) and told["run"] == RUN and told["commit"]
    assert told["claimed"] == told["test_accuracy"] == 0.9123


@pytest.mark.parametrize(
    ("accuracy", "sha256", "told"),
    [
        (0.90, "ab" * 32, "the weights give 90.00%, and the run claims 91.23%"),
        (0.9123, "cd" * 32, "not the images that the run was tested on"),
    ],
)
def test_a_figure_that_is_not_given_again_is_not_handed_in(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, accuracy: float, sha256: str, told: str
) -> None:
    measured(monkeypatch, accuracy, sha256)
    with pytest.raises(TransferFailed, match=told):
        desk.submit()
    assert not desk.dest.exists() and not list(desk.dest.parent.glob(".submission-*"))


def test_a_link_that_leads_nowhere_is_taken_as_it_is(desk: Desk) -> None:
    (desk.run / "logs" / "latest-run").symlink_to("gone")
    assert desk.submit() == 0
    assert os.readlink(desk.dest / "logs" / "latest-run") == "gone" and desk.verify() == ""


def test_what_pushes_the_bundle_makes_the_same_one(desk: Desk) -> None:
    assert desk.submit(run="mine", accept=["a b"]) == 0
    again = f"fab submit --run mine --dest {desk.dest} --data synthetic --accept 'a b'"
    assert f"  {again} --push URL\n  {again} --github NAME\n" in desk.told


def test_every_change_to_a_bundle_is_found(desk: Desk) -> None:
    desk.submit()
    for path, told in (
        ("train.log", "train.log: changed"),
        ("source/run.sh", "source/run.sh: changed"),
        ("new", "new: here, but not"),
    ):
        before = (desk.dest / path).read_bytes() if (desk.dest / path).exists() else None
        (desk.dest / path).write_text("other")
        assert told in desk.verify()
        (desk.dest / path).unlink()
        if before is not None:
            assert f"{path}: listed, but not here" in desk.verify()
            (desk.dest / path).write_bytes(before)
    assert desk.verify() == ""


@pytest.mark.parametrize("file", ["README.md", "summary.json", "evaluation.json", "weights.pt"])
def test_a_claim_that_was_raised_is_found_even_with_right_checksums(desk: Desk, file: str) -> None:
    desk.submit()
    content = (desk.dest / file).read_bytes()
    (desk.dest / file).write_bytes(
        content.replace(b"91.23%", b"95.00%", 1).replace(b"0.9123", b"0.95", 1) + b" "
    )
    (desk.dest / "SHA256SUMS").write_text(bundle.sums_of(desk.dest))
    assert desk.verify()


def test_an_unchanged_bundle_is_replaced_and_anything_else_is_left_alone(desk: Desk) -> None:
    desk.submit()
    assert desk.submit() == 0
    (desk.dest / "notes.txt").write_text("my own work")
    with pytest.raises(UsageError, match="no bundle as submit made it"):
        desk.submit()
    assert (desk.dest / "notes.txt").exists()
    other = desk.dest.parent / "other"
    make_tree(other, {"thesis.tex": "years"})
    with pytest.raises(UsageError, match="no bundle as submit made it"):
        desk.submit(dest=str(other))


def test_what_github_would_refuse_is_left_out_and_said(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "MOST_BYTES", 1000)
    (desk.run / "logs" / "huge").write_bytes(b"\0" * 1001)
    desk.submit()
    assert "left out       logs/huge" in desk.told and not (desk.dest / "logs" / "huge").exists()
    assert "Left out: logs/huge" in (desk.dest / "README.md").read_text()
    monkeypatch.setattr(bundle, "MOST_BYTES", 50)
    with pytest.raises(UsageError, match=r"weights\.pt is too large"):
        desk.submit(dest=str(desk.dest.parent / "again"))


def test_runs_are_found_by_id_beginning_name_or_path(desk: Desk) -> None:
    newer = make_tree(desk.results / "20261124-200000-fast-cd34", {"train.log": "failed"})
    for name in ("latest", RUN, "20261124-1015", "mine", str(desk.run)):
        assert find_run(desk.results, name) == desk.run
    assert find_run(desk.results, newer.name) == newer
    with pytest.raises(UsageError, match="no such run"):
        find_run(desk.results, "other")
    with pytest.raises(UsageError, match="fits several runs"):
        find_run(desk.results, "2026")
    with pytest.raises(UsageError, match="has not finished"):
        desk.submit(run=newer.name)
    make_tree(newer, {"run.json": '{"finish": "exit"}'})
    with pytest.raises(UsageError, match="of a command of your own"):
        desk.submit(run=newer.name)


def test_the_folder_of_sweeps_is_no_run(tmp_path: Path) -> None:
    make_tree(tmp_path, {"sweeps/rates/sweep.csv": "", "20261124-200000-a-cd34/run.json": "{}"})
    assert find_run(tmp_path, "latest").name == "20261124-200000-a-cd34"


"""As far as we use it: https://cli.github.com/manual/gh_repo_create."""


def test_without_torch_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path / "project")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError,
        match=r"fab -H … submit has it done on the server, or: pip install -r requirements\.txt",
    ):
        desk.submit()
    monkeypatch.undo()
    with pytest.raises(UsageError, match="name them: --data PATH"):
        desk.submit(data=None)


def test_the_project_s_own_code_evaluates_and_never_the_bundle_s(tmp_path: Path) -> None:
    """What came from a server, or from somebody else, is not run here."""
    desk = Desk(tmp_path / "project")
    told = 'import json, sys; print(json.dumps({"test_accuracy": 0.9123, "argv": sys.argv[1:]}))\n'
    make_tree(desk.project.directory, {"trainer/__init__.py": "", "trainer/evaluate.py": told})
    make_tree(
        desk.run / "source",
        {
            "trainer/__init__.py": "",
            "trainer/evaluate.py": "open('/pwned', 'w'); raise SystemExit(9)\n",
        },
    )
    assert evaluation.evaluate_here(desk.project, desk.run, "synthetic")["test_accuracy"] == 0.9123
    (desk.project.directory / "trainer" / "evaluate.py").write_text(
        "import sys; sys.exit('error: DATA is not here\\n')"
    )
    with pytest.raises(TransferFailed, match="can't be evaluated: DATA is not here"):
        evaluation.evaluate_here(desk.project, desk.run, "synthetic")
    with pytest.raises(NotFound, match="nowhere: no such file or folder here"):
        evaluation.evaluate_here(desk.project, desk.run, "nowhere")
