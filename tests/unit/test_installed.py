"""What the installation of a package of the project would add: versions, programs, entry points."""

from __future__ import annotations

import importlib.metadata
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from remote.agent.shared.run_records import Asked
from remote.agent.training import own_packages
from remote.agent.training.own_packages import lay_out_packages
from remote.deploy.deploy import own_packages as own_packages_of
from remote.link.session import Project, Session
from remote.records import Settings
from remote.release.release import build_release
from remote.screen.display import Display
from remote.ssh.target import Target
from tests.support.project import make_tree
from tests.unit.test_layout import MINE, POETRY, SETUP, imported, read

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
    asked = Asked(local=(package._asdict(),), python=sys.executable)
    monkeypatch.setattr(own_packages, "write_whole", None)
    lay_out_packages(str(tmp_path / "run"), asked)
    monkeypatch.undo()
    folder = tmp_path / "run" / ".modules"
    asked = Asked(local=(package._replace(version="2", entry_points={})._asdict(),))
    assert lay_out_packages(str(tmp_path / "run"), asked).programs == []
    assert [path.name for path in folder.iterdir()] == ["My_mine-2.dist-info"]
    (known,) = importlib.metadata.distributions(path=[str(folder)])
    assert known.metadata["Name"] == "My.mine"


@pytest.mark.parametrize(
    "local", [[{"places": ["../x"], "links": {}, "entry_points": {}}], [{"places": 1}], ["../x"]]
)
def test_what_is_no_package_is_refused(tmp_path: Path, local: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"inside the run|unknown form"):
        lay_out_packages(str(tmp_path), Asked(local=tuple(local)))


def test_a_run_of_an_older_version_names_folders_alone(tmp_path: Path) -> None:
    files = {"work/setup.py": "", "work/src/a/__init__.py": "", "work/libs/x/b.py": ""}
    found = lay_out_packages(str(make_tree(tmp_path, files)), Asked(local=("libs/x",)))
    work = tmp_path / "work"
    assert found.modules == [str(work / place) for place in ("src", ".", "libs/x")]
    make_tree(tmp_path / "plain", {"work/src/a.py": ""})
    assert lay_out_packages(str(tmp_path / "plain"), Asked()).modules == []


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


@pytest.mark.parametrize(
    ("command", "hidden"),
    [
        ("PYTHONPATH=. python train.py", True),
        ("PYTHONPATH=.:$PYTHONPATH python train.py", False),
        ("PYTHONPATH=src python train.py", False),
        ("python train.py", False),
    ],
)
def test_a_command_that_hides_the_projects_packages_is_told(
    tmp_path: Path, command: str, hidden: bool
) -> None:
    make_tree(tmp_path, {"pyproject.toml": MINE, "src/mine/__init__.py": "", "train.py": ""})
    said = io.StringIO()
    project = Project(tmp_path, Settings(command=command))
    with Session(Target("gpu"), project, Display(out=said, notes=said)) as session:
        own_packages_of(session, "--local-package .\n", build_release(tmp_path, 50))
    assert ("hides src; write PYTHONPATH=.:$PYTHONPATH" in said.getvalue()) is hidden
