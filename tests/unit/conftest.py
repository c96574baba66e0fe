"""Fixtures of several unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def quiet_trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Trainings within the test's process: in a folder of their own, without Lightning's remarks,
    and with pytest's signals given back."""
    from tests.support.training import signals_kept
    from trainer import command

    monkeypatch.chdir(tmp_path)
    command.quiet()
    with signals_kept():
        yield
