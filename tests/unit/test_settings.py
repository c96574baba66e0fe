"""Settings: every mistake at once, nothing unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from invoke.exceptions import Exit

from remote.errors import UsageError
from remote.project.settings import defaults, parse_settings
from remote.tasks import tasks
from remote.tasks.command_line import LINE


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


def test_no_number_in_the_environment_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LINE, "project", tmp_path)
    monkeypatch.setenv("FABRIC_REMOTE_STAY_S", "abc")
    with pytest.raises(Exit, match=r"remote\.stay_s must be a number, not 'abc'") as caught:
        tasks(tmp_path)
    assert caught.value.code == 2
