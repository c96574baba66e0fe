"""Settings: every mistake at once, nothing unknown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from remote.errors import UsageError
from remote.project.settings import defaults, parse_settings, take_environment, with_environment
from remote.project.settings_file import read_remote


def test_the_project_is_named_after_its_directory(tmp_path: Path) -> None:
    settings = parse_settings(defaults(), tmp_path / "my net")
    assert (settings.project, settings.root) == ("my net", "~/projects/my net")


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        parse_settings(
            {
                "rooot": "x",
                "timeout_s": "soon",
                "torch": "cuda",
                "torch_index": "https://mirror/whl --pre",
                "max_file_mib": -1,
                "command": [1],
            },
            tmp_path,
        )
    text = str(caught.value)
    parts = (
        "remote.rooot (did you mean root?)",
        "remote.timeout_s must be a number",
        "remote.torch must be auto",
        "remote.torch_index must be an address",
        "max_file_mib",
        "remote.command must be a text",
    )
    for part in parts:
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize("project", ["a/b", "..", "a\nb", "x" * 101, "\x1b[31m", "a:b"])
def test_a_project_that_is_no_directory_name_is_refused(tmp_path: Path, project: str) -> None:
    with pytest.raises(UsageError):
        parse_settings({"project": project}, tmp_path)


def test_a_root_with_a_colon_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="root must be a path without a colon"):
        parse_settings({"root": "~/a:b/{project}"}, tmp_path)


def test_numbers_from_the_environment_are_text(tmp_path: Path) -> None:
    assert parse_settings({"timeout_s": "5"}, tmp_path).timeout_s == 5.0


def test_variables_stand_above_the_file_whatever_types_it_has(tmp_path: Path) -> None:
    """Fabric would cast them to these types, and break off."""
    variables = {
        "FABRIC_REMOTE_TIMEOUT_S": "2.5",
        "FABRIC_REMOTE_INCLUDE": "a, b",
        "FABRIC_REMOTE_SLURM_TIME": "2h",
        "FABRIC_OTHER": "1",
    }
    values = {"timeout_s": 20, "include": ["c"], "slurm": {"partition": "long"}}
    settings = parse_settings(with_environment(values, take_environment(variables)), tmp_path)
    assert (settings.timeout_s, settings.include) == (2.5, "a, b")
    assert (settings.slurm.partition, settings.slurm.time) == ("long", "2h")
    assert variables == {"FABRIC_OTHER": "1"}


@pytest.mark.parametrize(
    "text",
    [
        "1: a\n",
        "remote: {1: a}\n",
        "remote: {2020-01-01: a}\n",
        "remote: {slurm: {yes: a}}\n",
        "Remote: {command: a}\n",
        "remotes: {command: a}\n",
        "remote: {Command: a}\n",
    ],
)
def test_keys_are_words_in_small_letters(tmp_path: Path, text: str) -> None:
    """At others Fabric breaks off."""
    (tmp_path / "fabric.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"fabric\.yaml: .* is no setting"):
        read_remote(tmp_path / "fabric.yaml")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "fabric.yaml"
    for content in (b"remote:\n", b"remote:\n  # command: x\n", b"", b"# x\n"):
        path.write_bytes(content)
        assert read_remote(path) == {}
    path.write_bytes("remote: {command: a}".encode("utf-16"))
    with pytest.raises(UsageError, match="save it as UTF-8"):
        read_remote(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match="can't be read"):
        read_remote(path)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("remote:\n  root: a\n  command: b\n  root: c\n", "line 4, column 3: root"),
        ('remote: {root: a, "root": a}\n', "line 1, column 19: root"),
        ("remote: {}\nremote: {}\n", "line 2, column 1: remote"),
        ("remote: {slurm: {time: 1, time: 2}}\n", "line 1, column 27: time"),
    ],
)
def test_a_key_that_is_there_twice(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "fabric.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"fabric.yaml {place} is set a second time"):
        read_remote(path)


def test_a_key_beside_one_that_is_merged_in(tmp_path: Path) -> None:
    path = tmp_path / "fabric.yaml"
    path.write_text("a: &a {root: x}\nb: &b {<<: *a, root: y}\nremote: {<<: *b, dest: z}\n")
    assert read_remote(path) == {"root": "y", "dest": "z"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"root": "$HOME/x"}, "remote.root is taken as it stands"),
        ({"root": "~bob/x"}, "remote.root is taken as it stands"),
        ({"root": "~/{name}"}, "remote.root is taken as it stands"),
        ({"root": " ~/x"}, "remote.root is taken as it stands"),
        ({"python": "python3"}, "remote.python must be an absolute path"),
        ({"dest": ""}, "remote.dest must name a folder"),
        ({"max_file_mib": ".nan"}, "must be a number"),
        ({"ask_above_mib": float("inf")}, "must be a number"),
        ({"env": {"A": "b"}}, "remote.env must be a text"),
        ({"slurm": ["x"]}, "remote.slurm holds keys"),
    ],
)
def test_what_would_be_misunderstood_is_refused(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        parse_settings(values, tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("STAY_S", "remote.stay_s must be a number, not 'x'"),
        ("STAYS_S", "unknown key remote.stays_s (did you mean stay_s?)"),
        ("SLURM_PARTITON", "unknown key remote.slurm.partiton (did you mean partition?)"),
        ("SLURM", "remote.slurm holds keys such as partition and time, not 'x'"),
    ],
)
def test_a_wrong_variable_is_one_line(tmp_path: Path, name: str, said: str) -> None:
    given = take_environment({f"FABRIC_REMOTE_{name}": "x"})
    with pytest.raises(UsageError) as caught:
        parse_settings(with_environment(defaults(), given), tmp_path)
    assert said in str(caught.value)
