"""Names, arguments and secrets made of what breaks shells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote.errors import UsageError
from remote.loopback import LoopbackServer
from remote.project import settings as remote_settings
from tests.support.agent import agent
from tests.support.faults import Lab
from tests.support.hostile import Frames, LyingLab
from tests.support.strings import HOSTILE_STRINGS, Echo, hostile_text

pytestmark = pytest.mark.timeout(180)


class TestStrings:
    def test_the_worst_strings_arrive_at_the_trainer_as_they_are(
        self, server: LoopbackServer, tmp_path: Path
    ) -> None:
        with agent(server) as link:
            echo = Echo(server, link, tmp_path)
            assert echo.send(HOSTILE_STRINGS) == HOSTILE_STRINGS
        assert not list(server.home.rglob("pwned*")) and not list(Path.cwd().glob("pwned*"))

    def test_any_strings_arrive_as_they_are_over_one_link(
        self, server: LoopbackServer, tmp_path: Path
    ) -> None:
        with agent(server) as link:
            echo = Echo(server, link, tmp_path)

            @settings(
                max_examples=12,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
            )
            @given(st.lists(hostile_text, min_size=4, max_size=12))
            def arrive(texts: list[str]) -> None:
                assert echo.send(texts) == texts

            arrive()
            assert echo.runs >= 12
        assert link.requests == 2 * echo.runs + echo.deploys

    @pytest.mark.parametrize("field", ["command", "results", "python"])
    def test_what_no_command_line_can_hold_is_refused_before_anything_is_sent(
        self, tmp_path: Path, field: str
    ) -> None:
        with pytest.raises(UsageError, match="NUL"):
            remote_settings.parse_settings({field: "sh a\0b"}, tmp_path)

    def test_a_projects_directory_may_be_named_anything(
        self, server: LoopbackServer, tmp_path: Path
    ) -> None:
        for number, name in enumerate(
            ("a b", "$(touch pwned)", "-rf", "'quote\"s", "ü日本", "semi;colon & more", "100%")
        ):
            lab = Lab(
                server,
                tmp_path / str(number),
                name=name,
                settings={"project": "", "root": "~/projects/{project}"},
            )
            done = lab.task("train")
            assert done.code == 0, done
            assert (lab.root / "current").resolve().is_dir() and len(
                list((lab.root / "runs").glob("2*"))
            ) == 1
        assert not list(server.home.rglob("pwned*"))

    def test_a_hostile_name_of_a_run_is_refused_before_anything_is_sent(
        self, tmp_path: Path
    ) -> None:
        sent: list[str] = []

        def answer(op: str, args: dict[str, Any]) -> Frames:
            sent.append(op)
            return []

        lab = LyingLab(tmp_path)
        for name in ("../x", "-n", "a b", "a;b", "$(x)", "a\nb", "", "x" * 41, "ü"):
            assert lab.ask("train", answer, name=name).code == 2
        assert sent == []
