"""Settings: every mistake at once, nothing unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote.errors import UsageError
from remote.project.settings import defaults, parse_settings, take_environment, with_environment


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
