"""Fixtures of several unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.desk import Desk


@pytest.fixture
def quiet_trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Trainings within the test's process: in a folder of their own, without Lightning's remarks,
    and with pytest's signals given back."""
    from tests.support.training import signals_kept
    from trainer import train

    monkeypatch.chdir(tmp_path)
    train.quiet()
    with signals_kept():
        yield


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who has never told git a name."""
    from remote.submission import repository

    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setattr(repository, "_configured", lambda place, name: False)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    from tests.support.desk import Desk, measured

    measured(monkeypatch, 0.9123)
    return Desk(tmp_path / "project")
