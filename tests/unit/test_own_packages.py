"""Packages of the project itself: what they need, as their metadata says it, and that their names
are asked of no index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote.errors import UsageError
from remote.requirements.reading import read_requirements
from tests.support.project import make_tree

ABOUT = '[project]\nname = "{}"\nversion = "1"\ndependencies = {}\n'


def asked(folder: Path, files: Mapping[str, str | bytes], name: str = "r.txt") -> list[str]:
    """Without our own lines."""
    make_tree(folder, files)
    text = read_requirements(folder, name)
    return [line for line in text.splitlines() if not line.startswith("--local-package")]


def refusal(folder: Path, files: Mapping[str, str | bytes], name: str = "r.txt") -> str:
    with pytest.raises(UsageError) as caught:
        asked(folder, files, name)
    assert "\n" not in str(caught.value)
    return f"{caught.value.message} — {caught.value.remedy}"


@pytest.mark.parametrize("order", ["-e libs/a\n-e libs/helper\n", "-e libs/helper\n-e libs/a\n"])
def test_no_index_is_asked_for_the_name_of_a_package_of_the_project(
    tmp_path: Path, order: str
) -> None:
    files = {
        "r.txt": order + "-c limits.txt\n",
        "limits.txt": "helper_lib<2\nc<2\n",
        "libs/a/pyproject.toml": ABOUT.format("a", ["Helper.Lib>=1", "helper-lib ; os_name=='nt'"]),
        "libs/helper/pyproject.toml": ABOUT.format("helper-lib", ["c"]),
    }
    assert sorted(asked(tmp_path, files)) == ["--constrained-to c<2", "c"]


def test_what_an_extra_of_such_a_package_needs_stands_in_place_of_its_name(tmp_path: Path) -> None:
    extras = (
        '[project.optional-dependencies]\nx = ["d", "a[y]"]\ny = ["e>=1 ; os_name == \'nt\'"]\n'
    )
    files = {
        "r.txt": "mine\n-e libs/a\n-e .\n",
        "pyproject.toml": ABOUT.format("mine", ["a[x] ; python_version < '3.9'"]),
        "libs/a/pyproject.toml": ABOUT.format("a", ["c"]) + extras,
    }
    assert sorted(asked(tmp_path, files)) == [
        "c",
        "d ; (python_version < '3.9')",
        "e>=1 ; (os_name == 'nt') and (python_version < '3.9')",
    ]


@pytest.mark.parametrize(
    "line",
    [
        './libs/x ; python_version > "3.8"',
        "file:./libs/x",
        "file:libs/x#egg=x",
        "x @ file:libs/x",
        '-e "./libs/x"',
        "./libs/x --config-settings a=b",
        ".\\libs\\x",
        "-e libs/x",
    ],
)
def test_a_package_is_named_in_every_way_that_pip_takes(tmp_path: Path, line: str) -> None:
    files = {"r.txt": line + "\n", "libs/x/pyproject.toml": ABOUT.format("x", ["c"])}
    make_tree(tmp_path, files)
    text = read_requirements(tmp_path, "r.txt")
    condition = ' ; (python_version > "3.8")' if ";" in line else ""
    assert text.splitlines() == [f"c{condition}", "--local-package libs/x"]


@pytest.mark.parametrize("line", ['-e ".[a]"', "-e '.[a]'", ".[a]", "mine[a] @ file:."])
def test_extras_in_quotes(tmp_path: Path, line: str) -> None:
    about = ABOUT.format("mine", []) + '[project.optional-dependencies]\na = ["c"]\n'
    assert asked(tmp_path, {"r.txt": line, "pyproject.toml": about}) == ["c"]


def test_a_folder_is_looked_for_where_pip_runs_and_then_beside_the_file(tmp_path: Path) -> None:
    files = {
        "requirements/train.txt": "-e .\n-e x\n-e y\n",
        "requirements/x/pyproject.toml": ABOUT.format("x", ["d"]),
        "pyproject.toml": ABOUT.format("mine", ["c"]),
        "x/train.py": "",
        "y/pyproject.toml": ABOUT.format("y", ["e"]),
        "requirements/y/pyproject.toml": ABOUT.format("other", ["f"]),
    }
    assert asked(tmp_path, files, "requirements/train.txt") == ["c", "d", "e"]


SETUP = "from setuptools import setup, find_packages\n"
READS = (
    "from pathlib import Path\nimport os, io\nhere = os.path.abspath(os.path.dirname(__file__))\n"
)
FUNCTION = """
def get_requirements(path: str, skip: str = "-e .") -> list:
    '''What to install.'''
    found = []
    with open(path) as file:
        found = [line.replace("\\n", "") for line in file.readlines()]
        if skip in found:
            found.remove(skip)
    return found
"""


@pytest.mark.parametrize(
    "text",
    [
        "REQ = ['c', 'd']\nsetup(install_requires=REQ)",
        "meta = dict(version=find(), install_requires=['c', 'd'])\nsetup(**meta)",
        "meta = {'install_requires': ['c']}\nmeta['install_requires'].append('d')\nsetup(**meta)",
        "setup(install_requires='c\\nd')",
        "setup(install_requires=('c', *['d']))",
        "BASE = ['c']\nif __name__ == '__main__':\n    setup(install_requires=BASE + ['d'])",
        "setup(install_requires=open('more.txt').read().splitlines())",
        "setup(install_requires=open('more.txt').readlines())",
        "setup(install_requires=open('more.txt'))",
        "with open('more.txt', encoding='utf-8') as f:\n    req = f.read().split('\\n')\n"
        "setup(install_requires=req)",
        "with open('more.txt') as f:\n    req = [x.strip() for x in f if not x.startswith('#')]\n"
        "setup(install_requires=req)",
        "req = Path(__file__).parent.joinpath('more.txt').read_text().splitlines()\n"
        "setup(install_requires=req)",
        "req = io.open(os.path.join(here, 'more.txt'), encoding='utf-8').readlines()\n"
        "setup(install_requires=req)",
        FUNCTION + "setup(install_requires=get_requirements('more.txt'))",
        "def read(*parts):\n    return io.open(os.path.join(here, *parts)).read()\n"
        "setup(install_requires=[x for x in read('.', 'more.txt').split('\\n')"
        " if x and not x.startswith(('#', '-'))])",
        "import pkg_resources\nsetup(install_requires=[str(r) for r in"
        " pkg_resources.parse_requirements(open(os.path.join(here, 'more.txt')))])",
        "found = parse_requirements('more.txt', session='x')\n"
        "setup(install_requires=[str(one.req) for one in found])",
        "place = os.path.dirname(os.path.realpath(__file__)) + '/more.txt'\nreq = []\n"
        "if os.path.isfile(place):\n    with open(place) as f:\n        req = f.readlines()\n"
        "setup(install_requires=req)",
        "setup(install_requires=open(os.getcwd() + '/more.txt').readlines())",
        FUNCTION + "def main():\n    setup(install_requires=get_requirements('more.txt'))\nmain()",
    ],
)
def test_what_setup_py_says_or_reads_from_a_file(tmp_path: Path, text: str) -> None:
    files = {
        "r.txt": "-e .\n",
        "setup.py": SETUP + READS + text,
        "more.txt": "# what is needed\nc\n\nd\n",
    }
    assert asked(tmp_path, files) == ["c", "d"]


@pytest.mark.parametrize(
    "text",
    [
        "setup(install_requires=compute())",
        "setup(**compute())",
        "import sys\nREQ = ['c']\nif sys.platform == 'x':\n    REQ.append('d')\n"
        "setup(install_requires=REQ)",
        "REQ = ['c']\ndef more():\n    if compute():\n        REQ.append('d')\nmore()\n"
        "setup(install_requires=REQ)",
        "for name in compute():\n    REQ = [name]\nsetup(install_requires=REQ)",
        "setup(install_requires=open('missing.txt').readlines())",
        "import subprocess\nsubprocess.run(['make'])",
        "setup(install_requires=[].__class__.__base__.__subclasses__())",
        "def f():\n    return f()\nsetup(install_requires=f())",
    ],
)
def test_what_setup_py_computes_is_told(tmp_path: Path, text: str) -> None:
    told = refusal(tmp_path, {"r.txt": "-e .\n", "setup.py": SETUP + text})
    assert "line 1: setup.py computes what it needs: " in told
    assert told.endswith("— list it in pyproject.toml's [project]")


def test_what_nobody_asks_for_may_be_computed(tmp_path: Path) -> None:
    text = "setup(version=find(), install_requires=['c'], extras_require={'x': find(), 'y': ['d']})"
    files = {"r.txt": "-e .\n", "setup.py": SETUP + text}
    assert asked(tmp_path, files) == ["c"]
    assert "computes what it needs: find()" in refusal(tmp_path, {"r.txt": "-e .[y]\n"})


def test_setup_cfg_and_dynamic_tables_name_files(tmp_path: Path) -> None:
    cfg = "# 训练\n[metadata]\nname = old\n[options]\ninstall_requires = file: a.txt, b.txt\n"
    cfg += "[options.extras_require]\nx =\n  e\n  # why\n  old[y]\ny = file: c.txt\n"
    dynamic = (
        '[project]\nname = "n"\ndynamic = ["version", "dependencies", "optional-dependencies"]\n'
        "[tool.setuptools.dynamic]\ndependencies = {file = ['a.txt']}\n"
        "optional-dependencies = {train = {file = ['b.txt', 'c.txt']}}\n"
    )
    files = {"r.txt": "-e .[x]\n", "a.txt": "a\n", "b.txt": "b>=1 # why\n", "c.txt": "c\n"}
    assert asked(tmp_path, {**files, "setup.cfg": cfg.encode("gbk")}) == ["a", "b>=1", "e", "c"]
    made = asked(tmp_path, {"pyproject.toml": dynamic}, "pyproject.toml[train]")
    assert made == ["a", "b>=1", "c"]


def test_groups_include_each_other_and_extras_may_stand_in_a_circle(tmp_path: Path) -> None:
    about = ABOUT.format("m", []) + (
        '[project.optional-dependencies]\na = ["m[b]", "c"]\nb = ["m[a]"]\n'
        '[dependency-groups]\ndev = [{include-group = "more"}, "d"]\nmore = ["e"]\n'
        'round = [{include-group = "round"}]\n'
    )
    assert asked(tmp_path, {"pyproject.toml": about}, "pyproject.toml[a,dev]") == ["c", "d", "e"]
    told = refusal(tmp_path, {}, "pyproject.toml[round]")
    assert "pyproject.toml: round includes itself" in told


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"setup.cfg": "[metadata]\nname=a\n[metadata]\n"}, "setup.cfg can't be read: "),
        ({"setup.cfg": "junk\n"}, "setup.cfg can't be read: File contains no section headers"),
        ({"setup.py": "print 'x'\n"}, "setup.py can't be read: Missing parentheses"),
        (
            {"pyproject.toml": 'project = "x"\n'},
            "pyproject.toml can't be read: project is no table",
        ),
        ({"pyproject.toml": "tool = 1\n"}, "pyproject.toml can't be read: tool is no table"),
        ({"pyproject.toml": ABOUT.format("m", [1])}, "project.dependencies is no list of texts"),
        ({"pyproject.toml": "[tool.ruff]\n"}, "pyproject.toml has no [project] table"),
        ({"pyproject.toml": "[tool.poetry]\nname = 'm'\n"}, "or name what poetry export wrote"),
        ({}, ".: neither pyproject.toml nor setup.cfg or setup.py"),
    ],
)
def test_a_file_of_a_wrong_form_is_told_in_one_line(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    assert said in refusal(tmp_path, {"r.txt": "-e .\n", **files})


def test_a_single_text_of_pyproject_is_a_line_and_not_its_letters(tmp_path: Path) -> None:
    assert asked(tmp_path, {"pyproject.toml": ABOUT.format("m", '"c"')}, "pyproject.toml") == ["c"]


KEYS = (
    *("project", "name", "dependencies", "dynamic", "optional-dependencies", "a", "tool"),
    *("setuptools", "packages", "find", "where", "file", "uv", "default-groups", "package"),
    *("source", "version", "metadata", "marker", "poetry", "dev-dependencies"),
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["m[a]", "a", "c>1", "", "dev"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ANY, ANY)
def test_files_of_any_shape_are_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: object, rest: object
) -> None:
    """As the reader of TOML gives them."""
    from remote.requirements import lock, packages

    held = {"project": project, "tool": rest, "package": rest, "dependency-groups": project}
    root = {"name": "m", "source": {"virtual": "."}, "dependencies": rest, "metadata": project}
    (tmp_path / "pyproject.toml").touch()
    for data in (held, {**held, "package": [root, project, rest]}):
        for module in (lock, packages):
            monkeypatch.setattr(
                module, "read_toml", lambda path, data=data: json.loads(json.dumps(data))
            )
        for name in ("pyproject.toml[a]", "uv.lock", "uv.lock[a]"):
            try:
                read_requirements(tmp_path, name)
            except UsageError as error:
                assert "\n" not in str(error)
