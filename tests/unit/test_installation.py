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
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.agent.environments import environments, installers, pip_settings, python_places
from remote.agent.environments.build_failures import Place, classify
from remote.agent.environments.builder import describe_plan
from remote.agent.environments.commands import Commands
from remote.agent.environments.interpreters import build_environment, same_signature, signature
from remote.agent.environments.resolution import Resolution
from remote.agent.machine.processes import group_members
from remote.agent.machine.programs import ENDED
from remote.agent.shared.text import redact
from tests.support.project import make_tree

PLACE = Place(
    *("/r/env/k/build.log", "/data", 900, 7168, "3.10.4", "2.31"),
    constraint="/etc/pip/constraint.txt",
    exit_code=1,
)
FAILURES = [
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
        "foo has no ready wheel for this python and could not be compiled: gcc is missing",
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
        "git there could not bring a repository: unable to access 'https://h/x.git/': Failed to",
    ),
    (
        "error: Failed to download and build `x @ git+https://h/x@nope`\n  cause: Git operation"
        " failed\n         --- stderr\n         fatal: couldn't find remote ref refs/tags/nope\n",
        "git there could not bring a repository: couldn't find remote ref refs/tags/nope",
    ),
    (
        "  error: pathspec 'nope' did not match any file(s) known to git\n"
        "  error: subprocess-exited-with-error\n"
        "  × git checkout -q nope did not run successfully.\n",
        "git there could not bring a repository: pathspec 'nope' did not match any file(s)",
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
    assert message in failure.message and "/r/env/k/build.log" in failure.remedy
    assert "\n" not in failure.message + failure.remedy and "pw" not in failure.message


def test_torch_that_came_along_unexpected_is_seen_afterwards() -> None:
    plan = {"needs_torch": False, "imports": [], "names": ["timm"]}
    found: dict[str, Any] = {
        "packages": {"timm": "1"},
        "requires": {"timm": ["torch"]},
        "torch": {},
        "commits": {},
    }
    assert not describe_plan(plan, found)["needs_torch"]
    found["requires"]["torch"] = []
    record = describe_plan(plan, found)
    assert (record["needs_torch"], record["imports"]) == (True, ["torch"])


def test_an_older_interpreter_that_is_there_is_proposed() -> None:
    failure = classify(NUMBA, PLACE._replace(older="/usr/bin/python3.9 (python 3.9.2)"))
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


def test_a_killed_installer_points_to_memory() -> None:
    assert "lack of memory" in classify("Collecting torch", PLACE._replace(exit_code=-9)).message
    assert "nothing for hours" in classify("Collecting", PLACE._replace(exit_code=ENDED)).message


@given(st.text())
def test_any_output_gives_a_reason(output: str) -> None:
    assert classify(output, PLACE).message


@pytest.mark.parametrize(
    ("works", "uv", "inherit"),
    [
        ("/p -m venv /", None, False),
        ("/uv venv", "/uv", False),
        ("/p -m venv --system-site-packages", None, True),
        ("/p -m virtualenv", None, True),
        ("/p -m venv --without-pip", None, False),
    ],
)
def test_a_venv_is_made_in_whichever_way_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, works: str, uv: str | None, inherit: bool
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    target = tmp_path / "venv"
    ran: list[list[str]] = []

    def run(argv: list[str]) -> int:
        ran.append(argv)
        assert not target.exists(), "nothing of another way is left"
        (target / "bin").mkdir(parents=True)
        if not " ".join(argv).startswith(works):
            return 1
        (target / "bin" / "python").touch(0o755)
        return 0

    installers.make_venv(run, "/p", str(target), inherit, uv)
    assert " ".join(ran[-1]).startswith(works)
    assert ("--system-site-packages" in ran[-1]) is inherit and ran[-1][-1] in (str(target), "/p")


def test_no_way_to_make_a_venv_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(installers.InstallerMissing, match="/p can't make a venv"):
        installers.make_venv(lambda *_: 1, "/p", str(tmp_path / "v"), False, None)


def test_what_pip_is_set_to_reaches_pip_and_uv_but_for_what_would_lead_them_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\n"
        "index-url = https://mirror/simple\n"
        "trusted-host = mirror\n"
        "target = /t\n"
        "[install]\n"
        "find-links = /w\n"
        "dry-run = true\n"
        "retries = 2\n"
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://extra/simple")
    monkeypatch.setenv("PIP_PREFIX", "/p")
    config = pip_settings.pip_config(dict(os.environ))
    assert pip_settings.index_lines(config, ["a"]) == [
        "--index-url https://mirror/simple",
        "--extra-index-url https://extra/simple",
        "--find-links /w",
        "a",
    ]
    uv = pip_settings.uv_environment({}, config)
    assert (uv["UV_INSECURE_HOST"], uv["UV_HTTP_RETRIES"]) == ("mirror", "2")
    pip = pip_settings.pip_environment({"PIP_TARGET": "/x", "HOME": "/h"}, config)
    assert (pip["PIP_CONFIG_FILE"], pip["PIP_USER"], pip["PIP_RETRIES"]) == ("/dev/null", "0", "2")
    assert pip["PIP_RESUME_RETRIES"] == "20"
    assert (pip["PIP_FIND_LINKS"], pip["PIP_TRUSTED_HOST"]) == ("/w", "mirror")
    assert not {"PIP_TARGET", "PIP_PREFIX", "PIP_DRY_RUN"} & set(pip)
    alone = pip_settings.without_indexes(config)
    assert "--index-url https://torch/whl" in (
        pip_settings.index_lines(alone, ["--index-url https://torch/whl"])
    )
    assert "PIP_INDEX_URL" not in pip_settings.pip_environment({}, alone)
    torch = {
        "UV_DEFAULT_INDEX": "https://m/simple",
        "UV_TORCH_BACKEND": "auto",
        "UV_CACHE_DIR": "/c",
    }
    assert pip_settings.uv_environment(torch, alone)["UV_DEFAULT_INDEX"] == "https://m/simple"
    own = pip_settings.uv_environment(torch, alone, own_index=True)
    assert set(own) - set(uv) == {"UV_CACHE_DIR", "UV_NO_CONFIG"}


@pytest.mark.parametrize(
    ("variable", "uv"),
    [("PIP_INDEX_URL", True), ("PIP_USE_MIRRORS", True), ("PIP_REQUIRE_HASHES", False)],
)
def test_uv_installs_where_pip_is_set_to_nothing_that_it_can_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, uv: bool
) -> None:
    """Old instructions for mirrors have names that pip itself passes over."""
    monkeypatch.setattr(installers, "find_uv", lambda: "/bin/uv")
    values = {"PIP_CONFIG_FILE": os.devnull, variable: "1"}
    commands = Commands(str(tmp_path), "log", lambda *_: None, lambda: True, 60)
    assert (installers.Installer(commands, values, []).uv == "/bin/uv") is uv


def test_what_pip_is_set_to_for_installing_goes_before_what_it_is_set_to_for_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whichever file is read last."""
    first, last = ".pip/pip.conf", ".config/pip/pip.conf"
    files = {
        first: "[install]\nindex-url = https://one\n",
        last: "[global]\nindex_url = https://two\n",
    }
    make_tree(tmp_path, files)
    for name in [name for name in os.environ if name.startswith(("PIP_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pip_settings.pip_config(dict(os.environ))["index-url"] == "https://one"
    (tmp_path / first).write_text("[install")
    assert pip_settings.pip_config(dict(os.environ))["index-url"] == "https://two"


@pytest.mark.parametrize(("there", "brought"), [("23.2", True), ("20.0", True), ("25.2", False)])
def test_a_pip_that_begins_a_cut_download_anew_is_not_built_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: str, brought: bool
) -> None:
    """On a slow link the largest wheel of torch would never arrive."""

    def ask(argv: list[str]) -> str:
        return "pip 26.1 from" if str(tmp_path) in argv[1] else f"pip {there} from"

    def run(argv: list[str], environment: dict[str, str]) -> int:
        ran.append(argv)
        if "--target" in argv:
            (Path(argv[argv.index("--target") + 1]) / "pip").mkdir()
        return 0

    monkeypatch.setattr(installers, "_ask", ask)
    monkeypatch.setattr(installers, "find_uv", lambda: None)
    installers._pip_version.cache_clear()
    ran: list[list[str]] = []
    commands = SimpleNamespace(run=run, directory=str(tmp_path), written=0)
    values = {"TMPDIR": str(tmp_path)}
    installer = installers.Installer(commands, values, [])  # type: ignore[arg-type]
    for _ in range(2):
        assert installer.install("/venv/bin/python", ["demo"], []) == "pip"
    installers._pip_version.cache_clear()
    fetched = [argv for argv in ran if "--target" in argv]
    assert len(fetched) == brought and len(ran) == 2 + brought
    program = [str(tmp_path / "pip_venv_bin_python" / "pip")] if brought else ["-m", "pip"]
    assert ran[-1][: 2 + len(program)] == ["/venv/bin/python", *program, "install"]


NUMBA = """Collecting numba==0.57
  error: subprocess-exited-with-error
RuntimeError: Cannot install on Python version 3.13.0; only versions >=3.8,<3.12 are supported.
"""
FLASH = """Collecting flash-attn
  error: subprocess-exited-with-error
ModuleNotFoundError: No module named 'torch'
"""
CONFLICT = "ERROR: Cannot install a because these package versions have conflicting dependencies."


class Call:
    def alive(self) -> bool:
        return True

    def event(self, **told: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("says", "python", "late", "failed"),
    [
        ({}, "/new", [], []),
        ({("/new", "numba==0.57"): NUMBA}, "/old", [], ["/new"]),
        (
            {("/new", "flash-attn @ git+https://h/f"): FLASH},
            "/new",
            ["flash-attn @ git+https://h/f"],
            [],
        ),
        ({("/new", "a"): CONFLICT}, None, [], ["/new"]),
    ],
)
def test_the_first_python_that_can_have_it_all_is_told(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    says: dict[tuple[str, str], str],
    python: str | None,
    late: list[str],
    failed: list[str],
) -> None:
    def resolve(
        self: installers.Installer, python: str, lines: list[str], constraints: list[str]
    ) -> dict[str, str]:
        for line in lines:
            if (python, line) in says:
                Path(self.commands.log).write_text(says[python, line])
                raise installers.Failed
        return {"a": "1"}

    monkeypatch.setattr(installers.Installer, "resolve", resolve)
    lines = ["a", "numba==0.57", "flash-attn @ git+https://h/f"]
    plan = {"pythons": ["/new", "/old"], "install": lines}
    found = Resolution(Call(), str(tmp_path), plan).find()  # type: ignore[arg-type]
    assert (found["python"], found["late"]) == (python, late)
    assert [told[0] for told in found["failed"]] == failed
    assert found["packages"] == ({"a": "1"} if python else None)


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        (CONFLICT, ["/image"]),
        (NUMBA, ["/image"]),
        ("ReadTimeoutError: host='pypi.org'", []),
        ("ERROR: No matching distribution found for demo>=9", []),
        ("no pip", []),
    ],
)
def test_an_image_is_passed_over_for_what_lies_in_it_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, failed: list[str]
) -> None:
    """An index out of reach, or a wrong name, is for the build to tell."""

    def resolve(
        self: installers.Installer, python: str, lines: list[str], constraints: list[str]
    ) -> dict[str, str]:
        assert self.uv is None and "--extra-index-url https://t/cu124" in lines
        if text == "no pip":
            raise installers.InstallerMissing
        Path(self.commands.log).write_text(text)
        raise installers.Failed

    monkeypatch.setattr(installers, "find_uv", lambda: "/bin/uv")
    monkeypatch.setattr(installers.Installer, "resolve", resolve)
    plan: dict[str, Any] = {"kind": "overlay", "pythons": ["/image"], "install": ["a"]}
    plan["torch"] = {"build": "cu124", "index": "https://t/cu124", "requirements": []}
    found = Resolution(Call(), str(tmp_path), plan).find()  # type: ignore[arg-type]
    assert found["packages"] is None and [told[0] for told in found["failed"]] == failed


@pytest.mark.parametrize(
    ("built_with", "changed"), [("3.10.4", None), ("3.10.12", None), ("3.9.12", "was replaced")]
)
def test_an_update_of_python_by_the_system_spoils_no_environment(
    tmp_path: Path, built_with: str, changed: str | None
) -> None:
    """Gigabytes would be fetched again for each of its security updates."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    made = signature(str(python), [])
    python.write_text("#!/bin/sh\necho Python 3.10.12\n")
    python.chmod(0o755)
    told = same_signature(made, str(python), built_with)
    assert told is None if changed is None else changed in str(told)


def test_packages_are_fetched_by_the_way_that_a_login_shell_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A command over ssh knows nothing of a proxy in ~/.profile; what it has itself goes first."""
    says = "https_proxy=http://p:1 PIP_INDEX_URL=https://m/simple HTTP_PROXY=http://q:2 OTHER=x"
    make_tree(tmp_path, {".profile": f"echo hello; export {says}\n"})
    for name in ("https_proxy", "PIP_INDEX_URL", "OTHER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (
        ("HOME", str(tmp_path)),
        ("SHELL", "/bin/sh"),
        ("HTTP_PROXY", "http://own"),
    ):
        monkeypatch.setenv(name, value)
    found = build_environment("/t")
    assert (found["https_proxy"], found["PIP_INDEX_URL"]) == ("http://p:1", "https://m/simple")
    assert found["HTTP_PROXY"] == "http://own" and "OTHER" not in found


def test_interpreters_are_found_where_their_managers_put_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = [
        ".conda/envs/a",
        "miniconda3/envs/b",
        "micromamba/envs/c",
        ".pyenv/versions/3.12.1",
        ".local/share/uv/python/cpython-3.13.0-linux-x86_64-gnu",
        ".virtualenvs/d",
        "work/d",
        "data/[elsewhere]",
        "login",
    ]
    pythons = [tmp_path / place / "bin" / "python" for place in places]
    make_tree(
        tmp_path,
        {
            ".conda/environments.txt": f"{tmp_path}/data/[elsewhere]\n{tmp_path}/gone\n",
            ".profile": f"echo hello; export PATH={tmp_path}/login/bin:$PATH\n",
        },
    )
    for python in pythons:
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        (python.parent / "python3").symlink_to("python")
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYENV_ROOT", "MAMBA_ROOT_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (
        ("HOME", tmp_path),
        ("WORKON_HOME", tmp_path / "work"),
        ("SHELL", "/bin/sh"),
    ):
        monkeypatch.setenv(name, str(value))
    found = python_places.candidates("", python_places.login_environment()["PATH"])
    ours = [Path(python).parent for python in found if python.startswith(str(tmp_path))]
    assert sorted(ours) == sorted(python.parent for python in pythons), "each once"


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
