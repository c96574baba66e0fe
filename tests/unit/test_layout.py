"""Where a package of the project has its modules, and what its installation would add, as its build
backend's settings say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from remote.agent.shared.local_package import LocalPackage
from remote.agent.shared.run_records import Asked
from remote.agent.training.own_packages import lay_out_packages
from remote.errors import UsageError
from remote.requirements.layout import Found, find_packages, unsent
from tests.support.project import make_tree

MINE = '[project]\nname = "mine"\nversion = "1"\n'
HATCH, POETRY = "[tool.hatch.build.targets.wheel]\n", '[tool.poetry]\nname = "mine"\n'
SETUP = "from setuptools import *\nsetup(name='mine', {})\n"


def read(tmp_path: Path, files: Mapping[str, str], folder: str = ".") -> Found:
    (found,) = find_packages(make_tree(tmp_path, files), [folder])
    return found


@pytest.mark.parametrize(
    ("settings", "module", "places", "links"),
    [
        ({"pyproject.toml": MINE}, "src/mine/__init__.py", ["src"], {}),
        ({"pyproject.toml": MINE}, "mine/__init__.py", ["."], {}),
        ({"pyproject.toml": MINE}, "src/ns/mine/__init__.py", ["src", "."], {}),
        ({"pyproject.toml": MINE}, "src/single.py", ["src", "."], {}),
        ({"pyproject.toml": MINE, "src/__init__.py": ""}, "src/a.py", ["."], {}),
        ({"pyproject.toml": MINE, "src/other/__init__.py": ""}, "mine/__init__.py", None, {}),
        ({"pyproject.toml": MINE, "src/kernel.c": ""}, "mine/__init__.py", ["."], {}),
        # setuptools
        (
            {"pyproject.toml": MINE + '[tool.setuptools]\npackage-dir = {"" = "lib"}\n'},
            "lib/mine/__init__.py",
            ["lib"],
            {},
        ),
        (
            {"pyproject.toml": MINE + '[tool.setuptools]\npackage-dir = {mine = "code"}\n'},
            "code/__init__.py",
            [],
            {"mine": "code"},
        ),
        (
            {"pyproject.toml": MINE + '[tool.setuptools.package-dir]\nmine = "python/mine"\n'},
            "python/mine/__init__.py",
            ["python"],
            {},
        ),
        (
            {"pyproject.toml": MINE + '[tool.setuptools.packages.find]\nwhere = ["a", "b"]\n'},
            "a/mine/__init__.py",
            ["a", "b"],
            {},
        ),
        (
            {"pyproject.toml": MINE + '[tool.setuptools]\npackages = ["mine"]\n', "src/x.py": ""},
            "mine/__init__.py",
            ["."],
            {},
        ),
        (
            {"setup.py": SETUP.format("package_dir={'': 'python'}, packages=['mine']")},
            "python/mine/__init__.py",
            ["python"],
            {},
        ),
        (
            {"setup.py": SETUP.format("packages=find_packages(where='lib')")},
            "lib/mine/__init__.py",
            ["lib"],
            {},
        ),
        (
            {"setup.py": SETUP.format("packages=find_packages()"), "src/m.py": ""},
            "mine/__init__.py",
            ["."],
            {},
        ),
        (
            {"setup.py": SETUP.format("package_dir={'': where()}, packages=['mine']")},
            "src/mine/__init__.py",
            ["src"],
            {},
        ),
        (
            {"setup.cfg": "[options]\npackages = mine\npackage_dir =\n  = lib\n"},
            "lib/mine/__init__.py",
            ["lib"],
            {},
        ),
        (
            {"setup.cfg": "[options]\npackages = find:\n[options.packages.find]\nwhere = lib\n"},
            "lib/mine/__init__.py",
            ["lib"],
            {},
        ),
        # the others
        (
            {"pyproject.toml": MINE + HATCH + 'packages = ["python/mine"]\n'},
            "python/mine/__init__.py",
            ["python"],
            {},
        ),
        (
            {"pyproject.toml": MINE + HATCH + 'sources = ["lib"]\n'},
            "lib/mine/__init__.py",
            ["lib"],
            {},
        ),
        (
            {"pyproject.toml": MINE + '[tool.hatch.build]\ndev-mode-dirs = ["lib"]\n'},
            "lib/mine/__init__.py",
            ["lib"],
            {},
        ),
        (
            {"pyproject.toml": MINE + HATCH + 'sources = {"code" = "ns/mine"}\n'},
            "code/__init__.py",
            [],
            {"ns.mine": "code"},
        ),
        (
            {"pyproject.toml": POETRY + 'packages = [{include = "mine", from = "python"}]\n'},
            "python/mine/__init__.py",
            ["python"],
            {},
        ),
        (
            {"pyproject.toml": MINE + '[tool.pdm.build]\npackage-dir = "lib"\n'},
            "lib/mine/__init__.py",
            ["lib"],
            {},
        ),
        (
            {"pyproject.toml": MINE + '[tool.uv.build-backend]\nmodule-root = ""\n'},
            "mine/__init__.py",
            ["."],
            {},
        ),
        (
            {"pyproject.toml": MINE + '[tool.maturin]\npython-source = "python"\n'},
            "python/mine/__init__.py",
            ["python"],
            {},
        ),
        (
            {"pyproject.toml": MINE + '[tool.scikit-build]\nwheel.packages = ["python/mine"]\n'},
            "python/mine/__init__.py",
            ["python"],
            {},
        ),
    ],
)
def test_where_modules_lie(
    tmp_path: Path,
    settings: Mapping[str, str],
    module: str,
    places: list[str] | None,
    links: dict[str, str],
) -> None:
    (tmp_path / "b").mkdir()
    make_tree(tmp_path / "b", {"other.py": ""})
    package = read(tmp_path, {**settings, module: "value = 1\n"}).package
    if places is not None:
        assert package.places == places
    assert package.links == links
    name = {"src/single.py": "single", "src/a.py": "src.a", "src/ns/mine/__init__.py": "ns.mine"}
    wanted = name.get(module, next(iter(links), "mine"))
    assert imported(tmp_path, package, f"import {wanted}; print({wanted}.value)") == "1"


def imported(tmp_path: Path, package: LocalPackage, code: str) -> str:
    """What it prints in a run that has a copy of the project."""
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    (run / "work").symlink_to(tmp_path)
    asked = Asked(local=(package._asdict(),), python=sys.executable)
    found = lay_out_packages(str(run), asked)
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(found.modules),
        "PATH": os.pathsep.join([*found.programs, os.defpath]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (MINE + '[tool.setuptools]\npackage-dir = {"" = "lib"}\n', "lie in lib, which is not"),
        (MINE + HATCH + 'packages = ["python/mine"]\n', "python/mine, which is not there"),
        (MINE + '[tool.setuptools]\npackage-dir = {"" = "data"}\n', "lie in data, and none does"),
        (MINE + '[tool.pdm.build]\npackage-dir = "../x"\n', "../x, outside the project"),
        (MINE + '[project.scripts]\nx = "mine.cli"\n', "x = 'mine.cli' is no module:function"),
        (MINE + '[tool.maturin]\npython-source = "a\\nb"\n', "lie in a b, which is not there"),
        (MINE + f'[tool.pdm.build]\npackage-dir = "{"x" * 300}"\n', "can't be followed: "),
    ],
)
def test_settings_that_lead_nowhere_are_one_line(tmp_path: Path, settings: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, {"pyproject.toml": settings, "data/a.bin": ""})
    assert said in caught.value.message and caught.value.remedy
    # Where only other packages are asked for, nobody has named it.
    (found,) = find_packages(tmp_path, [])
    assert found.package == LocalPackage(["."], {}, {})


@pytest.mark.parametrize(
    ("folder", "said"), [("../x", "outside the project"), ("libs/x", "there is no such folder")]
)
def test_a_lock_s_package_that_is_not_here_is_one_line(
    tmp_path: Path, folder: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        find_packages(tmp_path, [folder])


@pytest.mark.parametrize(
    "settings",
    [
        "project = 1",
        "tool = 1",
        "[project]\nscripts = 1\nname = []\nversion = {}",
        "[tool.setuptools]\npackage-dir = {x = 1, y = []}",
        "[tool.hatch.build]\npackages = 1\nsources = {a = 1}\nforce-include = []",
        "[tool.poetry]\npackages = [{from = 1}]\nscripts = []\nplugins = {a = 1}",
        "[tool.flit.module]\nname = '.'",
    ],
)
def test_settings_of_another_form_count_as_left_out(tmp_path: Path, settings: str) -> None:
    files = {"pyproject.toml": settings, "setup.py": "print 'x'", "src/mine/__init__.py": ""}
    found = read(tmp_path, files)
    assert found.package.places == ["src"]


def test_modules_that_are_not_sent(tmp_path: Path) -> None:
    files = {
        "pyproject.toml": MINE,
        "scratch.py": "",
        "src/mine/__init__.py": "",
        "src/mine/data/__init__.py": "",
        "src/mine/data/load.py": "",
        "libs/x/setup.py": "setup(name='x')",
        "libs/x/x.py": "",
    }
    found = find_packages(make_tree(tmp_path, files), [".", "./libs/x/"])
    sent = {*files} - {"scratch.py"}
    assert unsent(tmp_path, found, sent) == []
    lost = ["src/mine/data/__init__.py", "src/mine/data/load.py"]
    assert unsent(tmp_path, found, sent - {*lost}) == lost
    with pytest.raises(UsageError, match="libs/x is not sent"):
        unsent(tmp_path, found, {path for path in sent if not path.startswith("libs/")})
