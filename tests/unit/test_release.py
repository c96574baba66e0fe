"""Which files make a release, and what is sent of them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.agent.shared import protocol
from remote.agent.shared.trees import SYMLINK, tree_hash
from remote.deploy.code import plan_release
from remote.errors import UsageError
from remote.link.facts import Facts, Root
from remote.project.own_trainer import require_whole_trainer
from remote.release.code_files import how_to_send, is_private_key
from remote.release.git import project_identity
from remote.release.release import build_release, read_entry, upload_frames
from tests.support.project import HOSTILE, Executable, Link, commit, make_tree

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU" * 8


def paths(project: Path, **options: object) -> list[str]:
    return [entry.path for entry in build_release(project, 50, **options).entries]  # type: ignore[arg-type]


def git_listing(project: Path) -> list[str]:
    output = subprocess.run(
        ["git", "-C", str(project), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    )
    return sorted(
        os.fsdecode(name)
        for name in output.stdout.split(b"\0")
        if name and os.path.lexists(project / os.fsdecode(name))
    )


def test_takes_exactly_what_git_would_track(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "a.py": "1",
            "gone.py": "2",
            "keep.log": "3",
            ".gitignore": "*.log\n!keep.log\ndir/*\n!dir/wanted\n",
            "x.log": "4",
            "dir/wanted": "5",
            "dir/other": "6",
        },
    )
    commit(tmp_path, "first")
    (tmp_path / "gone.py").unlink()
    (tmp_path / "a.py").write_text("changed")
    make_tree(tmp_path, {"new file.py": "7", "tracked.log": "8"})
    subprocess.run(["git", "-C", str(tmp_path), "add", "-f", "tracked.log"], check=True)
    (tmp_path / ".git" / "info").mkdir(exist_ok=True)
    (tmp_path / ".git" / "info" / "exclude").write_text("secretly\n")
    make_tree(tmp_path, {"secretly": "9"})
    assert paths(tmp_path) == git_listing(tmp_path)
    assert (
        "secretly" not in paths(tmp_path)
        and "tracked.log" in paths(tmp_path)
        and "gone.py" not in paths(tmp_path)
    )


def test_a_repository_inside_is_part_of_the_tree(tmp_path: Path) -> None:
    make_tree(
        tmp_path, {"a.py": "1", "inner/b.py": "2", "inner/.gitignore": "c.py\n", "inner/c.py": "3"}
    )
    commit(tmp_path / "inner", "inner")
    commit(tmp_path, "outer")
    assert paths(tmp_path) == ["a.py", "inner/.gitignore", "inner/b.py"]


def test_hostile_names_and_kinds(tmp_path: Path) -> None:
    make_tree(tmp_path, HOSTILE)
    entries = {entry.path: entry for entry in build_release(tmp_path, 50).entries}
    assert set(entries) == set(HOSTILE)
    for name, content in HOSTILE.items():
        expected = (
            0o755
            if isinstance(content, Executable)
            else SYMLINK
            if isinstance(content, Link)
            else 0o644
        )
        assert entries[name].mode == expected, name


def test_without_git_rubbish_stays_here(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "a.py": "1",
            "__pycache__/a.pyc": "2",
            "runs/x": "3",
            "results/y": "4",
            "data/z": "5",
            "my env/pyvenv.cfg": "6",
            "my env/lib/x.py": "7",
            "sub/data.py": "8",
        },
    )
    assert paths(tmp_path) == ["a.py", "sub/data.py"]


def test_secrets_and_large_files_are_left_out_and_named(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "a.py": "1",
            ".env": "TOKEN=1",
            "sub/.env.local": "2",
            ".env.example": "3",
            "deploy_key": KEY,
            "ca.pem": "-----BEGIN CERTIFICATE-----",
            "both.pem": "-----BEGIN CERTIFICATE-----\n" * 4 + KEY,
            "notes.md": "a key begins with " + KEY,
            "big.bin": bytes(2 << 20),
            "out": Link("/etc/passwd"),
            "up": Link("../x"),
            ".venv/pyvenv.cfg": "",
            ".venv/lib/x.py": "",
        },
    )
    commit(tmp_path, "first")
    release = build_release(tmp_path, 1)
    left = dict(release.left_out)
    assert set(left) == {".env", "sub/.env.local", "deploy_key", "both.pem", "big.bin", "out", "up"}
    assert "2 MiB" in left["big.bin"]
    assert [entry.path for entry in release.entries][:3] == [
        ".env.example",
        ".venv/lib/x.py",
        ".venv/pyvenv.cfg",
    ]
    assert "big.bin" in paths(tmp_path, include="*.bin, deploy_key")


def test_an_untracked_virtual_environment_stays_here(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a.py": "1"})
    commit(tmp_path, "first")
    make_tree(tmp_path, {"venv/pyvenv.cfg": "", "venv/lib/x.py": ""})
    release = build_release(tmp_path, 50)
    assert [entry.path for entry in release.entries] == ["a.py"]
    assert release.left_out == (("venv/", "a virtual environment"),)


@pytest.mark.parametrize("in_git", [True, False])
def test_what_pip_install_leaves_stays_here(tmp_path: Path, in_git: bool) -> None:
    make_tree(tmp_path, {"pyproject.toml": "", "part/setup.py": "", "src/build/lib/mine.py": ""})
    if in_git:
        commit(tmp_path, "first")
    left = {
        "build/lib/a.py": "",
        "build/bdist.linux-x86_64/x": "",
        "part/build/lib/b.py": "",
        "demo.egg-info/PKG-INFO": "",
    }
    make_tree(tmp_path, {**left, "build/notes.py": ""})
    release = build_release(tmp_path, 50)
    sent = {entry.path for entry in release.entries}
    assert sent == {"pyproject.toml", "part/setup.py", "src/build/lib/mine.py"}
    assert release.left_out == (
        ("build/", "left by pip install"),
        ("demo.egg-info/", "left by pip install"),
        ("part/build/", "left by pip install"),
    )


def test_fetched_results_are_not_sent_back(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a.py": "1"})
    commit(tmp_path, "first")
    make_tree(
        tmp_path,
        {
            "results/20260101-000000-run-12ab/source/b.py": "2",
            "results/.pending/x.agent": "",
            "results/plot.py": "3",
        },
    )
    release = build_release(tmp_path, 50)
    assert [entry.path for entry in release.entries] == ["a.py", "results/plot.py"]
    assert release.left_out == (("results/", "fetched runs"),)


def test_without_git_code_is_sent_whatever_its_folder_is_called(tmp_path: Path) -> None:
    """A downloaded ZIP: what is left out is named with its reason."""
    make_tree(
        tmp_path,
        {
            "train.py": "1",
            "data/__init__.py": "",
            "data/small.csv": "1,2",
            "logs/events.out": "x",
            "runs/20260101-000000-a-12ab/source/x.py": "",
            "pkg/results/table.py": "",
            ".venv/pyvenv.cfg": "",
            ".venv/lib/y.py": "",
            ".pytest_cache/z": "",
            "pkg/__pycache__/q.pyc": "",
        },
    )
    release = build_release(tmp_path, 50)
    assert [entry.path for entry in release.entries] == [
        "data/__init__.py",
        "data/small.csv",
        "pkg/results/table.py",
        "train.py",
    ]
    assert dict(release.left_out) == {
        "logs/": "no code in it: taken for data or results",
        "runs/": "no code in it: taken for data or results",
        ".venv/": "a virtual environment",
        ".pytest_cache/": "a cache or a tool's own",
    }
    assert "logs/events.out" in paths(tmp_path, include="logs")


def test_a_trainer_of_which_git_ignores_a_part_is_not_sent_in_part(tmp_path: Path) -> None:
    files = {"trainer/__init__.py": "", "trainer/data/__init__.py": "", ".gitignore": "data/\n"}
    project = make_tree(tmp_path, files)
    commit(project, "x")
    with pytest.raises(UsageError, match=r"trainer/data/__init__.py is not sent.*\.gitignore"):
        require_whole_trainer(project, (e.path for e in build_release(project, 50).entries))
    (project / ".gitignore").write_text("/data/\n")
    require_whole_trainer(project, (e.path for e in build_release(project, 50).entries))


def test_what_git_ignores_is_sent_where_it_is_included(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a.py": "1", ".gitignore": "*.bin\n.env\nshards\n"})
    commit(tmp_path, "first")
    make_tree(
        tmp_path,
        {
            "train.bin": "1",
            "deep/val.bin": "2",
            ".env": "KEY=1",
            "shards/0/x": "3",
            "other.txt": "4",
        },
    )
    assert paths(tmp_path) == [".gitignore", "a.py", "other.txt"]
    found = paths(tmp_path, include="*.bin, .env, shards/")
    assert found == [
        ".env",
        ".gitignore",
        "a.py",
        "deep/val.bin",
        "other.txt",
        "shards/0/x",
        "train.bin",
    ]
    with pytest.raises(UsageError, match=r"'trian\.bin' matches no file; is it train\.bin"):
        build_release(tmp_path, 50, "a.py, trian.bin")


def test_a_submodule_without_its_content_is_one_line(tmp_path: Path) -> None:
    inner = make_tree(tmp_path / "inner", {"x.py": "1"})
    commit(inner, "inner")
    outer = make_tree(tmp_path / "outer", {"a.py": "1"})
    commit(outer, "first")
    for name in ("libs/one", "two"):
        subprocess.run(
            ["git", "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), name],
            cwd=outer,
            check=True,
        )
    commit(outer, "with submodules")
    subprocess.run(["git", "clone", "-q", str(outer), str(tmp_path / "clone")], check=True)
    with pytest.raises(UsageError) as caught:
        build_release(tmp_path / "clone", 50)
    assert caught.value.message == "the submodules libs/one, two: no content here"
    assert caught.value.remedy == "git submodule update --init --recursive"
    assert paths(outer) == [".gitmodules", "a.py", "libs/one/x.py", "two/x.py"]


def test_files_where_a_submodule_should_be_are_sent(tmp_path: Path) -> None:
    """Unpacked there by hand, without the submodule's .git."""
    project = make_tree(tmp_path, {"a.py": "1"})
    commit(project, "first")
    link = "160000,0123456789012345678901234567890123456789,libs/one"
    subprocess.run(["git", "update-index", "--add", "--cacheinfo", link], cwd=project, check=True)
    make_tree(project, {"libs/one/x.py": "1"})
    assert paths(project) == ["a.py", "libs/one/x.py"]


def test_a_project_that_an_outer_repository_ignores_is_told_so(tmp_path: Path) -> None:
    make_tree(tmp_path, {".gitignore": "mine\n", "a": "1"})
    commit(tmp_path, "first")
    with pytest.raises(
        UsageError, match=r"no files to send in .*: the repository .* around it ignores them"
    ) as caught:
        build_release(make_tree(tmp_path / "mine", {"train.py": "1"}), 50)
    assert "git init" in str(caught.value.remedy)


def test_an_empty_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no files"):
        build_release(tmp_path, 50)


def test_the_hash_depends_on_content_mode_and_name(tmp_path: Path) -> None:
    trees: set[str] = set()
    for files in ({"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": Executable("1")}):
        project = tmp_path / str(len(trees))
        trees.add(build_release(make_tree(project, files), 50).tree)
    assert len(trees) == 4


def test_plan_says_why(tmp_path: Path) -> None:
    release = build_release(make_tree(tmp_path, {"a": "1"}), 50)
    facts = Facts(Root("/r"), release_exists=True, current=release.tree, releases=({},))
    keep = plan_release(facts, release)
    assert (keep.action, keep.why) == ("keep", "code kept: nothing changed")
    assert plan_release(replace(facts, current="x"), release).action == "use"
    first = plan_release(Facts(Root("/r")), release)
    assert first.missing == frozenset({release.entries[0].sha256})
    later = Facts(Root("/r"), releases=({},))
    assert plan_release(later, release).missing is None
    assert plan_release(replace(later, missing=()), release).missing == frozenset()


@given(st.lists(st.binary(max_size=5000), min_size=1, max_size=12))
def test_frames_carry_every_content_once(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    project = tmp_path_factory.mktemp("p")
    make_tree(project, {f"f{i}": content for i, content in enumerate(contents)})
    release = build_release(project, 50, include="*")
    arrived: dict[str, bytes] = {}
    for header, blob in upload_frames(
        project, release.entries, frozenset(entry.sha256 for entry in release.entries)
    ):
        total = sum(length for _, length, _ in header["pieces"])
        data = protocol.unpack(blob, total) if header["packed"] else blob
        for sha256, length, _ in header["pieces"]:
            arrived[sha256] = arrived.get(sha256, b"") + data[:length]
            data = data[length:]
    assert sorted(arrived.values()) == sorted(set(contents))


def test_tree_hash_is_not_fooled_by_joined_names() -> None:
    assert tree_hash([("a", 0o644, 1, "0" * 64)]) != tree_hash([("a\n", 0o644, 1, "0" * 64)])


def test_identity_is_the_first_commit_and_the_folder(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a": "1", "x/p/a": "1"})
    assert project_identity(tmp_path) is None
    commit(tmp_path, "first")
    first = project_identity(tmp_path)
    commit(tmp_path, "second")
    assert first and project_identity(tmp_path) == first
    assert project_identity(tmp_path / "x" / "p") == f"{first}:x/p"
    subprocess.run(
        ["git", "clone", "-q", "--depth", "1", f"file://{tmp_path}", str(tmp_path / "shallow")],
        check=True,
    )
    assert project_identity(tmp_path / "shallow") is None


def test_private_keys_are_known_by_their_content() -> None:
    assert is_private_key("x", KEY.encode())
    assert not is_private_key("x.py", b'MARK = "' + KEY.encode())


def test_what_can_not_be_read_is_said_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without git; a folder as it is walked, a file as it is read."""

    def look(path: Any = ".") -> Any:
        if str(path).endswith("/shut"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", look)
    make_tree(tmp_path, {"a.py": "", "package/shut/b.py": ""})
    release = build_release(tmp_path, 50)
    assert release.left_out == (("package/shut/", "can't be read"),)
    assert how_to_send(release.left_out) == ["mend its rights, and it is sent"]
    with pytest.raises(UsageError, match=r"mem can't be read: Input/output error"):
        read_entry(Path("/proc/self"), "mem", None)


def test_a_folder_that_git_can_not_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_tree(tmp_path / "p", {"a.py": ""})
    commit(project, "first")
    make_tree(project, {"new/b.py": ""})
    (project / "new").chmod(0)
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root reads everything, and setpriv is not here")
    if os.geteuid() == 0:  # who reads everything, unless git is started without that right
        real, right = shutil.which("git"), "-dac_override,-dac_read_search"
        line = f'#!/bin/sh\nexec setpriv --bounding-set {right} {real} "$@"\n'
        make_tree(tmp_path / "bin", {"git": Executable(line)})
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    try:
        assert build_release(project, 50).left_out == (("new/", "can't be read"),)
    finally:
        (project / "new").chmod(0o755)


def test_a_link_that_leads_out_is_not_sent_by_naming_it(tmp_path: Path) -> None:
    make_tree(tmp_path, {"p/a.py": "", "p/common": Link("../lib"), "lib/b.py": "", "p/.env": ""})
    os.mkfifo(tmp_path / "p" / "pipe")
    release = build_release(tmp_path / "p", 50)
    include, other = how_to_send(release.left_out)
    assert "remote.include" in include and "upload-data" in other
    assert not how_to_send([("pipe", "not a regular file")])
    with pytest.raises(UsageError, match=r"remote\.include names common, a link that leads out"):
        build_release(tmp_path / "p", 50, "common")
    assert "pipe" not in paths(tmp_path / "p", include="pipe, .env")
