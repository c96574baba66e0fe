"""Where a package of the project has its modules, and what its installation would add, as its build
backend's settings say."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from remote.agent.shared.local_package import LocalPackage
from remote.agent.training import own_packages
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
    asked = {"local": [package._asdict()], "python": sys.executable}
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


POINTS = {
    "console_scripts": {"mytrain": "mine.cli:main"},
    "mine.models": {"Small": "mine.nets:Small"},
}


@pytest.mark.parametrize(
    "files",
    [
        {
            "pyproject.toml": MINE
            + '[project.scripts]\nmytrain = "mine.cli:main"\n'
            + '[project.entry-points."mine.models"]\nSmall = "mine.nets:Small [extra]"\n'
        },
        {
            "pyproject.toml": POETRY
            + 'version = "1"\n[tool.poetry.scripts]\nmytrain = {reference = "mine.cli:main"}\n'
            + 'sh = {reference = "x.sh", type = "file"}\n'
            + '[tool.poetry.plugins."mine.models"]\nSmall = "mine.nets:Small"\n'
        },
        {
            "setup.cfg": "[metadata]\nname = mine\nversion = 1\n[options.entry_points]\n"
            "console_scripts =\n  mytrain = mine.cli:main\nmine.models =\n  Small=mine.nets:Small\n"
        },
        {
            "setup.py": SETUP.format(
                "version='1', entry_points={'console_scripts': ['mytrain=mine.cli:main'],"
                " 'mine.models': 'Small = mine.nets:Small'}"
            )
        },
        {
            "setup.py": SETUP.format(
                "version='1', entry_points='[console_scripts]\\nmytrain=mine.cli:main\\n"
                "[mine.models]\\nSmall=mine.nets:Small'"
            )
        },
        {
            "setup.py": "from setuptools import setup\nmeta = dict(name='mine', entry_points={\n"
            "    'console_scripts': ['mytrain = mine.cli:main'],\n"
            "    'mine.models': ['Small = mine.nets:Small'],\n})\n"
            "setup(version=open('V').read().strip(), **meta)\n",
            "V": "1\n",
        },
    ],
)
def test_what_an_installation_would_add(tmp_path: Path, files: Mapping[str, str]) -> None:
    package = read(tmp_path, files).package
    assert (package.name, package.version, package.entry_points) == ("mine", "1", POINTS)


@pytest.mark.parametrize(
    ("files", "version"),
    [
        ({"pyproject.toml": 'version = "1.0-alpha"\n'}, "1.0a0"),
        (
            {
                "pyproject.toml": 'dynamic = ["version"]\n[tool.setuptools.dynamic]\n'
                'version = {attr = "mine.about.__version__"}\n',
                "src/mine/about.py": "__version__: str = '2.1'\n",
            },
            "2.1",
        ),
        (
            {"pyproject.toml": '[tool.setuptools.dynamic]\nversion = {file = "V"}\n', "V": "3.0\n"},
            "3.0",
        ),
        (
            {
                "pyproject.toml": '[tool.hatch.version]\npath = "src/mine/v.py"\n',
                "src/mine/v.py": "VERSION = 'v4.0'\n",
            },
            "4.0",
        ),
        (
            {
                "pyproject.toml": "",
                "setup.cfg": "[metadata]\nversion = attr: mine.__version__\n",
                "src/mine/__init__.py": "__version__ = version = '5.0'\n",
            },
            "5.0",
        ),
        ({"pyproject.toml": "", "src/mine/__init__.py": "__version__ = '6'\n"}, "6"),
        ({"pyproject.toml": "", "Cargo.toml": '[package]\nversion = "7"\n'}, "7"),
        ({"pyproject.toml": "", "VERSION": "8\n"}, "8"),
        ({"pyproject.toml": 'dynamic = ["version"]\n[tool.setuptools_scm]\n'}, "0"),
    ],
)
def test_versions(tmp_path: Path, files: Mapping[str, str], version: str) -> None:
    about = '[project]\nname = "mine"\n' + files["pyproject.toml"]
    tree = {"src/mine/__init__.py": "", **files, "pyproject.toml": about}
    assert read(tmp_path, tree).package.version == version


def test_a_run_has_metadata_entry_points_and_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = (
        '[project]\nname = "My.mine"\nversion = "1.2"\n[project.scripts]\nmytrain = "mine:main"\n'
        '[project.gui-scripts]\nshow-it = "mine:Window.open"\n'
        '[project.entry-points.models]\nSmall = "mine:Window"\n'
    )
    code = (
        "import sys\ndef main():\n    print('trained', *sys.argv[1:]); return 3\n"
        "class Window:\n    @staticmethod\n    def open(): print('opened')\n"
    )
    package = read(tmp_path, {"pyproject.toml": about, "src/mine/__init__.py": code}).package
    told = imported(
        tmp_path,
        package,
        "import subprocess; from importlib.metadata import *; print(version('my-mine'),"
        " entry_points().select(group='models')['Small'].load().__name__, flush=True);"
        " print(subprocess.call(['mytrain', '--lr', '0.1']), flush=True);"
        " subprocess.call(['show-it'])",
    )
    assert told.split() == ["1.2", "Window", "trained", "--lr", "0.1", "3", "opened"]
    # The next attempt needs no room; after that one has other code.
    asked: dict[str, Any] = {"local": [package._asdict()], "python": sys.executable}
    monkeypatch.setattr(own_packages, "write_whole", None)
    lay_out_packages(str(tmp_path / "run"), asked)
    monkeypatch.undo()
    folder = tmp_path / "run" / ".modules"
    asked = {"local": [package._replace(version="2", entry_points={})._asdict()]}
    assert lay_out_packages(str(tmp_path / "run"), asked).programs == []
    assert [path.name for path in folder.iterdir()] == ["My_mine-2.dist-info"]
    (known,) = importlib.metadata.distributions(path=[str(folder)])
    assert known.metadata["Name"] == "My.mine"


@pytest.mark.parametrize(
    "local", [[{"places": ["../x"], "links": {}, "entry_points": {}}], [{"places": 1}], ["../x"]]
)
def test_what_is_no_package_is_refused(tmp_path: Path, local: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"inside the run|unknown form"):
        lay_out_packages(str(tmp_path), {"local": local})


def test_a_run_of_an_older_version_names_folders_alone(tmp_path: Path) -> None:
    files = {"work/setup.py": "", "work/src/a/__init__.py": "", "work/libs/x/b.py": ""}
    found = lay_out_packages(str(make_tree(tmp_path, files)), {"local": ["libs/x"]})
    work = tmp_path / "work"
    assert found.modules == [str(work / place) for place in ("src", ".", "libs/x")]
    make_tree(tmp_path / "plain", {"work/src/a.py": ""})
    assert lay_out_packages(str(tmp_path / "plain"), {"local": []}).modules == []


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


@pytest.mark.parametrize(
    ("files", "built"),
    [
        ({"pyproject.toml": MINE, "setup.py": "setup(ext_modules=[x()])"}, "ext_modules"),
        ({"pyproject.toml": MINE + '[build-system]\nbuild-backend = "maturin"\n'}, "maturin"),
        ({"pyproject.toml": MINE}, ""),
    ],
)
def test_what_is_compiled_is_known(tmp_path: Path, files: Mapping[str, str], built: str) -> None:
    assert read(tmp_path, files).built == built


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
