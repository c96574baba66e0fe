"""What all tests share: the SSH servers' fixtures, their logs on failure, and which server it is in
the header."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # `remote`, `trainer` and `tests`, from any folder

from tests.support import programs, sshd
from tests.support.login import agent, program, runtime
from tests.support.slurm import cluster, login
from tests.support.sshd import (
    each_server,
    make_server,
    server,
    server_keys,
    system_user,
    unprivileged,
)

# Whoever runs them: messages are compared in English.
os.environ["LANGUAGE"] = "en"

__all__ = [
    "agent",
    "cluster",
    "each_server",
    "login",
    "make_server",
    "program",
    "runtime",
    "server",
    "server_keys",
    "system_user",
    "unprivileged",
]

# How long an example takes is the machine's matter.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any")


def pytest_report_header() -> str:
    return sshd.header()


def pytest_runtest_setup(item: pytest.Item) -> None:
    programs.skip_without(item)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    programs.tell_missing(terminalreporter, config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    sshd.attach_logs(item, report)
    return report
