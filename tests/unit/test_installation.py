"""The agent's side of an environment, as far as it is pure: why it failed, how it is made, what the
proof means."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.agent.environments import environments
from remote.agent.environments.build_failures import Place, classify, missing_module
from remote.agent.environments.builder import describe_plan
from remote.agent.environments.commands import Commands
from remote.agent.environments.installers import NOT_INSTALLED
from remote.agent.machine.processes import group_members
from remote.agent.machine.programs import ENDED
from remote.agent.shared.build_plan import BuildPlan
from remote.agent.shared.environment import Interpreter
from remote.agent.shared.text import redact
from tests.support.project import make_tree

PLACE = Place(
    BuildPlan(version="3.10.4", need_mib=7168), "/data", 900, "2.31", "/etc/pip/constraint.txt", 1
)


def in_plan(**changes: Any) -> Place:
    return PLACE._replace(plan=PLACE.plan._replace(**changes))


NUMBA = """Collecting numba==0.57
  error: subprocess-exited-with-error
RuntimeError: Cannot install on Python version 3.13.0; only versions >=3.8,<3.12 are supported.
"""
LATE = """Collecting toolz<1
  error: subprocess-exited-with-error
  × Building wheel for kit-a (pyproject.toml) did not run successfully.
  │ exit code: 1
  ╰─> [6 lines of output]
      building 'kit' extension
      error: [Errno 2] No such file or directory: 'x86_64-linux-gnu-gcc'
      [end of output]
  ERROR: Failed building wheel for kit-a
  × Building wheel for kit_b (pyproject.toml) did not run successfully.
  │ exit code: 1
  ╰─> [50 lines of output]
      ModuleNotFoundError: No module named 'toolz'
      [end of output]
  ERROR: Failed building wheel for kit_b
Failed to build kit-a kit_b
error: failed-wheel-build-for-install
× Failed to build installable wheels for some pyproject.toml based projects
╰─> kit-a, kit_b
"""
"""As pip 26 has it; older ones have the names in the line above."""
DEPRECATED = """  error: subprocess-exited-with-error
  × Getting requirements to build wheel did not run successfully.
  │ exit code: 1
  ╰─> [15 lines of output]
      The 'sklearn' PyPI package is deprecated, use 'scikit-learn'
      rather than 'sklearn' for pip commands.
      [end of output]
ERROR: Failed to build 'sklearn' when getting requirements to build wheel
"""
DEPRECATED_UV = """error: Failed to build `sklearn==0.0.post12`
  cause: The build backend returned an error
         [stderr]
         The 'sklearn' PyPI package is deprecated, use 'scikit-learn'
         rather than 'sklearn' for pip commands.
hint: `sklearn` is often confused for `scikit-learn`.
"""
FAILURES = [
    (LATE.partition("  × Building wheel for kit_b")[0], "kit-a has no ready wheel for this python"),
    (LATE, "kit-b could not be built: its build needs the module toolz"),
    (
        LATE.replace("toolz", "x86_64").replace("ModuleNotFoundError: No module", "nothing"),
        "kit-a has no ready wheel for this python and could not be built: x86_64-linux-gnu-gcc is",
    ),
    (DEPRECATED, "could not be built: The 'sklearn' PyPI package is deprecated"),
    (DEPRECATED_UV, "could not be built: The 'sklearn' PyPI package is deprecated"),
    (
        "Discarding file:///k.tar.gz: Requested gitpkg from file:///k.tar.gz has inconsistent name:"
        " expected 'y', but metadata has 'gitpkg'\n"
        "ERROR: No matching distribution found for y (unavailable)",
        "what the requirements call y calls itself gitpkg",
    ),
    (
        "error: Failed to build `y @ file:///k.tar.gz`\n"
        "  cause: Package metadata name `gitpkg` does not match given name `y`",
        "what the requirements call y calls itself gitpkg",
    ),
    (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
        "the disk is full at /data (0.9 GiB free",
    ),
    (
        "ERROR: Could not install packages due to an OSError: [Errno 122] Disk quota exceeded",
        "your quota on the disk at /data is used up",
    ),
    (
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(':"
            " Failed to establish a new connection: [Errno -3] Temporary failure in name"
            " resolution')': /simple/torch/\nERROR: Could not find a version that satisfies the"
            " requirement torch (from versions: none)\nERROR: No matching distribution found for"
            " torch"
        ),
        "the package index can't be reached from the server",
    ),
    (
        "HTTPSConnectionPool(host='index.example', port=443): Read timed out.\nReadTimeoutError",
        "the package index (index.example) can't be reached from the server",
    ),
    (
        (
            "error: Failed to fetch: `https://me:pw@mirror.org/simple/`\n  Caused by: error sending"
            " request for url"
        ),
        "the package index (mirror.org) can't be reached from the server",
    ),
    (
        "connection broken by 'NameResolutionError(\"HTTPSConnection(host='c.example')"
        ": Failed to resolve ([Errno -2] Name or service not known)\")'\n"
        "CondaHTTPError: HTTP 000 CONNECTION FAILED for url <https://c.example/repodata.json>",
        "conda's channel (c.example) can't be reached from the server",
    ),
    (
        (
            "ERROR: Cannot install a==2 and b==1 because these package versions have conflicting"
            " dependencies."
        ),
        "the requirements contradict each other: a==2 and b==1",
    ),
    (
        (
            "ERROR: Could not find a version that satisfies the requirement demo>=9 (from versions:"
            " 1.0, 1.1)\nERROR: No matching distribution found for demo>=9"
        ),
        "the requirement demo>=9 can't be satisfied; the newest offered is 1.1",
    ),
    (
        (
            "ERROR: Ignored the following versions that require a different python version: 2.6.0"
            " Requires-Python >=3.11\nERROR: No matching distribution found for numpy>=2.6"
        ),
        "numpy>=2.6 needs python ≥ 3.11, this is 3.10.4",
    ),
    (
        (
            "  × No solution found when resolving dependencies:\n"
            "  ╰─▶ Because only demo==1.0 is available\n"
            "      and you require demo>=9, no."
        ),
        "can't be satisfied: Because only demo==1.0 is available and you require demo>=9",
    ),
    (
        "error: command 'gcc' failed: No such file\nERROR: Failed building wheel for foo",
        "foo has no ready wheel for this python and could not be built: gcc is missing",
    ),
    (
        "OSError: [Errno 13] Permission denied: '/x/y'\nCheck the permissions.",
        "permission denied: /x/y",
    ),
    (
        "ERROR: Ignored the following versions that require a different python version: 0.57.0"
        " Requires-Python >=3.8,<3.10\nERROR: No matching distribution found for numba==0.57",
        "numba==0.57 takes python < 3.10, this is 3.10.4",
    ),
    (
        "  fatal: unable to access 'https://h/x.git/': Failed to connect to h port 443\n"
        "  × git clone --quiet https://h/x.git /tmp/x did not run successfully.\n"
        "error: subprocess-exited-with-error\n",
        "git there could not fetch a repository: unable to access 'https://h/x.git/': Failed to",
    ),
    (
        "error: Failed to download and build `x @ git+https://h/x@nope`\n  cause: Git operation"
        " failed\n         --- stderr\n         fatal: couldn't find remote ref refs/tags/nope\n",
        "git there could not fetch a repository: couldn't find remote ref refs/tags/nope",
    ),
    (
        "  error: cannot run ssh: No such file or directory\n  fatal: unable to fork\n"
        "  × git clone --quiet ssh://git@h/x.git /tmp/x did not run successfully.\n",
        "git there could not fetch a repository: cannot run ssh: No such file or directory",
    ),
    (
        "ERROR: Invalid requirement: 'x @ a b' (from line 1 of /r/env/k/install.txt)\n",
        "not a requirement: 'x @ a b'",
    ),
    (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have\n"
        "    demo-pkg==1.0 from http://h/x.whl:\n        Expected sha256 00\n",
        "demo-pkg==1.0 is not the file whose hash the requirements have",
    ),
    (
        "  × Failed to download `demo-pkg==1.0`\n  ╰─▶ Hash mismatch for `demo-pkg==1.0`\n",
        "demo-pkg==1.0 is not the file whose hash the requirements have",
    ),
    (
        "  error: pathspec 'nope' did not match any file(s) known to git\n"
        "  error: subprocess-exited-with-error\n"
        "  × git checkout -q nope did not run successfully.\n",
        "git there could not fetch a repository: pathspec 'nope' did not match any file(s)",
    ),
    (
        "ERROR: Cannot find command 'git' - do you have 'git' installed and in your PATH?",
        "the requirements name a repository, and git is not on the server",
    ),
    (
        "ERROR: Package 'old-kit' requires a different Python: 3.10.4 not in '<3.10,>=3.8'",
        "old-kit takes python < 3.10, this is 3.10.4",
    ),
    (
        "Collecting flash-attn\n  error: subprocess-exited-with-error\n"
        "ModuleNotFoundError: No module named 'torch'",
        "flash-attn could not be built: its build needs the module torch",
    ),
    (
        "error: metadata-generation-failed\n"
        "× Encountered error while generating package metadata.\n╰─> numba\n",
        "numba has no ready wheel for this python",
    ),
    (
        "ERROR: Cannot install numpy>=2 because these package versions have conflicting"
        " dependencies.\nThe user requested (constraint) numpy==1.26",
        "numpy>=2: the requirements contradict /etc/pip/constraint.txt on the server",
    ),
    (
        "PackagesNotFoundInChannelsError: The following packages are missing from the target"
        " environment:\n  - timn\n",
        "are missing from the target environment: - timn",
    ),
    (
        "error    libmamba Could not solve for environment specs\n    The following package could"
        " not be installed\n    └─ timn does not exist.\ncritical libmamba Could not solve",
        "The following package could not be installed └─ timn does not exist.",
    ),
    ("noise\nValueError: strange\nmore", "the installation failed: ValueError: strange"),
    ("", "the installation failed: exit code 1"),
]


@pytest.mark.parametrize(("output", "message"), FAILURES, ids=range(len(FAILURES)))
def test_why_an_installation_failed(output: str, message: str) -> None:
    failure = classify(output, PLACE)
    assert message in failure.message
    assert "\n" not in failure.message + failure.remedy and "pw" not in failure.message


def test_a_package_that_lacks_another_is_the_one_that_says_so() -> None:
    """Though others can't be built either."""
    assert missing_module(LATE) == ("kit-b", "toolz")
    uv = "error: Failed to build `kit_b==1`\nModuleNotFoundError: No module named 'toolz'"
    assert missing_module(uv) == ("kit-b", "toolz")


def test_torch_that_came_along_unexpected_is_seen_afterwards() -> None:
    plan = BuildPlan(names=["timm"])
    found = Interpreter(packages={"timm": "1"}, requires={"timm": ("torch",)})
    assert not describe_plan(plan, found).needs_torch
    made = describe_plan(plan, found._replace(requires={"timm": ("torch",), "torch": ()}))
    assert (made.needs_torch, made.imports) == (True, ("torch",))


def test_an_older_interpreter_that_is_there_is_proposed() -> None:
    failure = classify(NUMBA, in_plan(older="/usr/bin/python3.9 (python 3.9.2)"))
    assert failure.message.startswith("numba has no ready wheel")
    assert "set remote.python to /usr/bin/python3.9 (python 3.9.2)" in failure.remedy


def test_what_a_killed_build_left_is_gone_before_room_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else it would stand in its own way for ever."""
    left = {"venv/lib/torch.so": "x", "tmp/pip-unpack/torch.whl": "x", "build.json": "{}"}
    make_tree(tmp_path, left | {"plan.json": "{}"})
    asked: list[list[str]] = []

    def require_room(path: str, need: int, *more: object) -> None:
        asked.append(sorted(name.name for name in Path(path).iterdir()))

    monkeypatch.setattr(environments, "require_room", require_room)
    environments._make_room(str(tmp_path), 7168)
    assert asked == [["plan.json"]]


def test_what_a_killed_builder_started_is_ended(tmp_path: Path) -> None:
    """Its installer, and what that has started elsewhere."""
    program = "sleep 60 & cd / && sleep 60 & wait"
    shell = subprocess.Popen(["sh", "-c", program], cwd=tmp_path, start_new_session=True)
    told = {"host": os.uname().nodename, "directory": str(tmp_path), "pid_started": 1}
    try:
        while len(group_members(shell.pid)) < 3:
            time.sleep(0.01)
        environments._end_leftovers(told | {"pid": shell.pid, "directory": "/elsewhere"})
        assert shell.poll() is None
        environments._end_leftovers(told | {"pid": shell.pid})
        assert shell.wait(10) == -signal.SIGKILL
        while group_members(shell.pid):
            time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)


@pytest.mark.parametrize(("pauses", "code"), [([0.3] * 4, 0), ([60], ENDED)])
def test_an_installer_has_time_as_long_as_it_says_something(
    tmp_path: Path, pauses: list[float], code: int
) -> None:
    """On a slow link torch takes hours."""
    commands = Commands(str(tmp_path), "log", lambda *_: None, lambda: True, 0.9)
    program = f"import time\nfor pause in {pauses}: time.sleep(pause); print(pause, flush=True)"
    assert commands.run([sys.executable, "-c", program], dict(os.environ)) == code


def test_an_installer_of_which_no_word_can_be_written_is_ended(tmp_path: Path) -> None:
    """As on a full disk: it must not go on where the rest is being removed."""

    def hear(line: str | None, amount: list[int] | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    commands = Commands(str(tmp_path), "log", hear, lambda: True, 60)
    program = "import time; print('x', flush=True); time.sleep(60)"
    with pytest.raises(OSError, match="No space"):
        commands.run([sys.executable, "-c", program], dict(os.environ))
    assert commands.child is not None and commands.child.wait(10) == -signal.SIGKILL


def test_a_full_disk_that_is_not_the_projects_is_told_as_another() -> None:
    """conda keeps its packages in the home, which is small on rented servers."""
    text = "NoSpaceLeftError: No space left on devices."
    assert "the disk is full at /data" in classify(text, PLACE).message
    other = classify(text, PLACE._replace(free_mib=200_000))
    assert "not that of the project (195.3 GiB free at /data)" in other.message
    assert "conda clean" in other.remedy


def test_an_index_that_the_requirements_name_is_to_be_mended_there() -> None:
    text = (
        "WARNING: Retrying after connection broken by 'NewConnectionError(\"HTTPConnection("
        "host='mirror.local', port=80): Failed to establish a new connection\")'\n"
    )
    assert "pip config set" in classify(text, PLACE).remedy
    own = classify(text, in_plan(options=["--index-url http://mirror.local/simple"]))
    assert own.remedy.startswith("the requirements name it"), own


def test_what_lacks_what_in_the_words_of_both_installers() -> None:
    text = (
        "The package `needy` requires `demo-pkg>=1`, but it's not installed\n"
        "needs-old 1.0 requires base, which is not installed.\n"
        "needs-old 1.0 has requirement other<1, but you have other 2.\n"
    )
    assert NOT_INSTALLED.findall(text) == [("needy", "demo-pkg"), ("needs-old", "base")]


def test_an_attempt_of_ours_is_only_in_the_log(tmp_path: Path) -> None:
    heard: list[str | None] = []
    commands = Commands(str(tmp_path), "log", lambda line, _: heard.append(line), lambda: True, 60)
    for shown in (False, True):
        commands.run([sys.executable, "-c", f"print({shown})"], dict(os.environ), shown=shown)
    assert heard == ["True"] and "False" in commands.output()


def test_a_killed_installer_points_to_memory() -> None:
    assert "lack of memory" in classify("Collecting torch", PLACE._replace(exit_code=-9)).message
    assert "nothing for hours" in classify("Collecting", PLACE._replace(exit_code=ENDED)).message


@given(st.text())
def test_any_output_gives_a_reason(output: str) -> None:
    assert classify(output, PLACE).message


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@h/s", "https://****@h/s"),
        ("git+ssh://git@h/r", "git+ssh://****@h/r"),
        ("a @ b", "a @ b"),
    ],
)
def test_passwords_in_addresses_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown
