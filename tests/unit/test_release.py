"""Which files make a release, and what is sent of them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.agent.shared import protocol
from remote.agent.shared.trees import SYMLINK, tree_hash
from remote.deploy.code import plan_release
from remote.errors import UsageError
from remote.link.facts import Facts, Root
from remote.project.own_trainer import require_whole_trainer
from remote.release.git import project_identity
from remote.release.release import build_release, upload_frames
from tests.support.project import HOSTILE, Executable, Link, commit, make_tree


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
    assert (first.action, first.why) == ("send", "first release")
    assert plan_release(Facts(Root("/r"), releases=({},)), release).why == "code changed"


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


def test_a_repository_of_somebody_else_is_refused_with_gits_own_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_tree(tmp_path / "p", {"a.py": ""})
    commit(project, "first")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UsageError) as refused:
        build_release(project, 50)
    remedy = refused.value.remedy
    assert remedy == f"git config --global --add safe.directory {project}"
