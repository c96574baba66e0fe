"""How an environment is made: its venv, what pip and uv are set to, which interpreter can have it
all."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remote.agent.environments import installers, pip_settings, python_places
from remote.agent.environments.commands import Commands
from remote.agent.environments.interpreters import build_environment, same_signature, signature
from remote.agent.environments.resolution import Resolution
from remote.agent.shared.build_plan import BuildPlan, TorchChoice
from tests.support.project import make_tree
from tests.unit.test_installation import NUMBA


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

    def run(argv: list[str], environment: dict[str, str], shown: bool = True) -> int:
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


def test_a_pip_that_does_not_run_in_the_new_python_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A system's pip tells its version there all the same."""

    def ask(argv: list[str]) -> str | None:
        fits = argv[0] == "/new" if "--python" in argv else argv[0] != "/venv/python"
        return "pip 24.2 from" if fits or (argv[0] == "/old" and "list" not in argv) else None

    monkeypatch.setattr(installers, "_ask", ask)
    installers._pip_version.cache_clear()
    try:
        own = installers.find_pip("/own/python", ["/old", "/new"])
        found = installers.find_pip("/venv/python", ["/old", "/new"])
        none = installers.find_pip("/venv/python", ["/old"])
    finally:
        installers._pip_version.cache_clear()
        installers._can_list.cache_clear()
    assert own == ["/own/python", "-m", "pip"]
    assert found == ["/new", "-m", "pip", "--python", "/venv/python"] and none is None


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
    plan = BuildPlan(pythons=["/new", "/old"], install=lines)
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
    torch = TorchChoice("cu124", index_url="https://t/cu124")
    plan = BuildPlan(kind="overlay", pythons=["/image"], install=["a"], torch=torch)
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
