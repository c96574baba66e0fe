"""Handing in: what goes into a bundle, what stops it, and what a check of one finds."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from remote.errors import NotFound, RemoteError, TransferFailed, UsageError
from remote.link.session import Project
from remote.project.options import SubmitOptions
from remote.project.results import find_run
from remote.records import Settings
from remote.screen.display import Display
from remote.submission import bundle, evaluation, repository, secret_scan, submit
from tests.support.project import REPOSITORY, Executable, make_tree

SUMMARY: dict[str, Any] = {
    "test_accuracy": 0.9123,
    "test_images": 10000,
    "epochs": 3,
    "max_epochs": 3,
    "seconds": 75.0,
    "seed": 1,
    "per_class": {"cat": 0.85, "dog": None},
    "data": {"kind": "folder", "sha256": "ab" * 32, "train": 9, "validation": 1, "test": 2},
    "config": {
        "recipe": "fast",
        "data": "/home/wang/cifar",
        "run_dir": "/home/wang/runs/r",
        "devices": "0",
        "learning_rate": 1e-05,
    },
    "versions": {"torch": "2.14.1"},
    "devices": ["1 GPU(s)", "  gpu 0: H100"],
}
RUN = "20261124-101500-fast-ab12"


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who has never told git a name."""
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setattr(repository, "_configured", lambda place, name: False)


class Desk:
    """A project with a fetched run, and what `submit` says of it."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "results"
        self.project = Project(folder, Settings(dest="results"))
        self.dest = folder / "submission"
        self.told = ""
        source = {"trainer/train.py": "print(1)\n", "odd\nname\\x": "1", "run.sh": "true\n"}
        files: dict[str, Any] = {f"source/{name}": content for name, content in source.items()}
        files |= {
            "weights.pt": b"w" * 99,
            "train.log": "saved in /home/wang/runs/r\n",
            "logs/events": b"\0e",
            "curves.png": b"p",
        }
        self.run = make_tree(
            self.results / RUN,
            {
                **files,
                "summary.json": json.dumps(SUMMARY),
                "run.json": json.dumps({"name": "mine"}),
            },
        )

    def submit(self, **options: Any) -> int:
        given = {
            "run": "latest",
            "dest": str(self.dest),
            "data": "synthetic",
            "push": None,
            "github": None,
            "accept": (),
            "yes": False,
        }
        out = io.StringIO()
        try:
            return submit.submit(
                self.project,
                Display(out=out, notes=out),
                None,
                SubmitOptions(**{**given, **options}),
            )
        finally:
            self.told = out.getvalue()

    def verify(self, folder: Path | None = None) -> str:
        out = io.StringIO()
        try:
            assert (
                submit.verify(
                    self.project, Display(out=out, notes=out), str(folder or self.dest), None
                )
                == 0
            )
        except TransferFailed as error:
            return out.getvalue() + str(error)
        return ""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    measured(monkeypatch, 0.9123)
    return Desk(tmp_path / "project")


def measured(monkeypatch: pytest.MonkeyPatch, accuracy: float, sha256: str = "ab" * 32) -> None:
    def evaluate(project: Project, place: Path, data: str) -> Mapping[str, Any]:
        assert (place / "weights.pt").read_bytes() == b"w" * 99
        return {"test_accuracy": accuracy, "data_sha256": sha256}

    monkeypatch.setattr(submit, "evaluate_here", evaluate)


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


SECRETS = {
    "private key": (
        "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n"
    ),
    "GitHub token": "t = 'ghp_" + "a1B2" * 9 + "'",
    "Hugging Face token": "hf_" + "aB3" * 10,
    "AWS key": "AKIA" + "ABCD" * 4,
    "Slack token": "xoxb-" + "1234567890",
    "API key": "sk-" + "a" * 24,
    "Weights & Biases key": "wandb.login(key='" + "0f" * 20 + "')",
    "webhook address": "https://open.feishu" + ".cn/open-apis/bot/v2/hook/abcdef-123",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_in_the_code_stops_it_and_is_not_repeated(desk: Desk, kind: str) -> None:
    (desk.run / "source" / "a b.py").write_text(f"first\n{SECRETS[kind]}\n")
    with pytest.raises(UsageError) as caught:
        desk.submit()
    assert f"source/a b.py:2: {kind}" in str(caught.value) and SECRETS[kind][5:] not in str(
        caught.value
    )
    assert not desk.dest.exists()


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("conf.yaml", "password: hunter2-Zq9", "password"),
        ("conf.yaml", "index: https://me:hunter2@mirror.example/simple", "address with a password"),
        ("conf.yaml", "data: /home/wang/images", "home directory"),
        ("conf.json", '{"data": "C:\\\\Users\\\\wang\\\\images"}', "home directory"),
        ("run.sh", "cd /Users/wang/code", "home directory"),
        (".env", "A=1", "a file for secrets, by its name"),
        ("id_ed25519", "x", "a file for secrets, by its name"),
    ],
)
def test_settings_and_names_are_looked_at(tmp_path: Path, name: str, text: str, kind: str) -> None:
    (tmp_path / name).write_text(text)
    assert [finding.kind for finding in secret_scan.search(tmp_path, [name])] == [kind]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "password = read_password()  # /home/wang"),
        ("a.yaml", "# password: the one of your account"),
        ("a.yaml", "password: ${PASSWORD}"),
        ("a.yaml", "root: ~/projects\npython: /root/miniconda3/bin/python"),
        ("a.py", "'-----BEGIN PRIVATE KEY-----' in text"),
        (".env.example", "A="),
        ("b.bin", "\0ghp_" + "a" * 36),
    ],
)
def test_what_only_speaks_of_secrets_is_let_through(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert secret_scan.search(tmp_path, [name]) == []


def test_this_repository_can_be_handed_in() -> None:
    """Whoever trains in a clone of it submits its tests, too, with their made-up secrets."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True
    )
    names = listed.stdout.split("\0")[:-1] or [
        path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "tests").rglob("*.py")
    ]
    assert secret_scan.search(REPOSITORY, names) == []


def test_a_finding_can_be_accepted_and_the_check_remembers_it(desk: Desk) -> None:
    (desk.run / "source" / "conf.yaml").write_text("password: only-a-test\n")
    with pytest.raises(UsageError, match=r"--accept source/conf\.yaml"):
        desk.submit()
    assert desk.submit(accept=["source/conf.yaml"]) == 0
    assert desk.verify() == ""


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


def test_pushing_where_nothing_is_told_in_one_line_and_the_bundle_stays(desk: Desk) -> None:
    with pytest.raises(RemoteError, match="git push failed"):
        desk.submit(push=str(desk.dest.parent / "nowhere.git"))
    with pytest.raises(UsageError, match="--push needs the address"):
        desk.submit(push="--receive-pack=touch pwned")
    assert desk.verify() == ""
    assert (
        repository.without_password("https://me:token@github.com/a/b.git")
        == "https://github.com/a/b.git"
    )


GH = """#!/bin/sh
echo "$@" >> "$TOLD"
test -n "$FAILS" && {
  echo "GraphQL: Name already exists on this account (createRepository)" >&2; exit 1; }
for word; do case $word in --source=*) source=${word#--source=};; esac; done
git -C "$source" remote add origin "$BARE" && git -C "$source" push --quiet origin main || exit 1
echo "https://github.com/you/cifar10"
"""
"""As far as we use it: https://cli.github.com/manual/gh_repo_create."""


@pytest.fixture
def gh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for GitHub's program, with a bare repository for GitHub. Returns what it was
    told."""
    make_tree(tmp_path / "bin", {"gh": Executable(GH)})
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("BARE", str(tmp_path / "github.git"))
    subprocess.run(
        ["git", "init", "--quiet", "--bare", "--initial-branch=main", tmp_path / "github.git"],
        check=True,
    )
    return tmp_path / "told"


def test_a_public_repository_is_made_only_after_a_yes_and_its_address_is_shown(
    desk: Desk, gh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--yes says so beforehand"):
        desk.submit(github="you/cifar10")
    assert not gh.exists() and desk.verify() == ""
    monkeypatch.setattr(
        Display,
        "confirm",
        lambda display, question: "PUBLIC repository you/cifar10" not in question,
    )
    desk.submit(github="you/cifar10")
    assert not gh.exists() and "not published" in desk.told
    assert desk.submit(github="you/cifar10", yes=True) == 0
    assert "published, to be sent: https://github.com/you/cifar10\n" in desk.told
    assert (
        gh.read_text()
        == f"repo create you/cifar10 --public --source={desk.dest} --remote=origin --push\n"
    )
    subprocess.run(
        ["git", "clone", "--quiet", tmp_path / "github.git", tmp_path / "clone"], check=True
    )
    assert desk.verify(tmp_path / "clone") == ""


def test_what_github_refuses_is_told_in_one_line_and_the_bundle_stays(
    desk: Desk, gh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(TransferFailed, match="Name already exists"):
        desk.submit(github="cifar10", yes=True)
    assert desk.verify() == ""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(submit, "make_repository", lambda place, message: "abc")
    with pytest.raises(
        UsageError, match="gh is not installed — create a repository by hand, then --push URL"
    ):
        desk.submit(github="cifar10", yes=True, dest=str(desk.dest.parent / "other"))


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
