"""conda's environment files: what conda gets, what its pip gets; and what `init` finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote.errors import UsageError
from remote.project.init import find_packages
from remote.requirements.lines import requirements_hash
from remote.requirements.parsed import Requirements, parse_requirements
from remote.requirements.reading import read_requirements
from tests.support.project import make_tree


def conda_of(folder: Path, text: str, name: str = "environment.yml") -> Requirements:
    (folder / name).write_text(text, encoding="utf-8")
    return parse_requirements(read_requirements(folder, name))


def test_condas_lines_keep_their_places(tmp_path: Path) -> None:
    """A channel and a package may have one name."""
    lines = ["channels:", "- pytorch", "dependencies:", "- pytorch", "- pip:", "  - a"]

    def digest(text: str) -> str:
        conda_of(tmp_path, text)
        return requirements_hash(read_requirements(tmp_path, "environment.yml"))

    assert list(conda_of(tmp_path, "\n".join(["# ours", *lines, ""])).conda) == lines
    told = digest("\n".join(lines))
    same = "channels: [pytorch] # x\n\ndependencies: [pytorch, {pip: [a]}]\n"
    assert digest(same) == told
    for other in (lines[:3] + lines[4:], [*lines[:5], "  - a", "  - b"], [*lines[:4], "- a"]):
        assert digest("\n".join(other)) != told


@pytest.mark.parametrize(
    ("line", "pips"),
    [
        ("-e .", ["b", "c"]),
        ("'-e .[x]'", ["b", "c", "d"]),
        ("--editable .", ["b", "c"]),
        (".", ["b", "c"]),
        ("mine", ["b", "mine"]),
        ("-r more/r.txt", ["b", "e"]),
        ("--requirement more/r.txt", ["b", "e"]),
    ],
)
def test_condas_lines_for_pip_are_those_of_a_requirements_file(
    tmp_path: Path, line: str, pips: list[str]
) -> None:
    about = '[project]\nname = "mine"\ndependencies = ["c"]\n'
    files = {
        "pyproject.toml": about + '[project.optional-dependencies]\nx = ["d"]\n',
        "more/r.txt": "e\n-c limits.txt\n",
        "more/limits.txt": "e<2\n",
    }
    make_tree(tmp_path, files)
    text = f"dependencies:\n  - python=3.10\n  - pip:\n    - b\n    - {line}\n"
    found = conda_of(tmp_path, text, "gpu.yml")
    assert list(found.conda[3:]) == [f"  - {one}" for one in pips]
    assert [str(one) for one in found.constraints] == (["e<2"] if "e" in pips else [])
    assert ("--local-package ." in read_requirements(tmp_path, "gpu.yml")) is ("c" in pips)


def test_conda_gets_no_section_for_pip_that_is_empty(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    text = "dependencies:\n  - python=3.10\n  - pip\n  - pip:\n    - -e .\n"
    assert list(conda_of(tmp_path, text).conda) == ["dependencies:", "- python=3.10", "- pip"]
    assert list(conda_of(tmp_path, "dependencies: [a, {pip: }]").conda) == ["dependencies:", "- a"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "name: x\n dependencies: [\n",
            "e.yml line 2 is no YAML: mapping values are not allowed here",
        ),
        ("- a\n", "e.yml is no environment file of conda's"),
        ("name: x\n", "it lists no dependencies"),
        ("dependencies: [{pip: {a: b}}]", "pip is no list of texts"),
        ("dependencies: [{pip: [a=1, -r r.txt]}]", "e.yml, pip: a=1: conda's form; pip's is a==1"),
        ("dependencies: [{pip: [-r r.txt]}]", "r.txt can't be read"),
    ],
)
def test_what_is_no_environment_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        conda_of(tmp_path, text, "e.yml")
    assert said in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["requirements/train.txt", "requirements/dev.txt"], ["requirements/train.txt"]),
        (["uv.lock", "pyproject.toml", "requirements-dev.txt"], ["uv.lock", "pyproject.toml"]),
        (
            ["environment.yaml", "requirements_gpu.txt"],
            ["requirements_gpu.txt", "environment.yaml"],
        ),
        (["env/gpu.yml", "conda.yaml"], ["conda.yaml", "env/gpu.yml"]),
        (["environment-gpu.yml", "config.yml"], ["environment-gpu.yml"]),
        (["pdm.lock", "setup.py"], []),
    ],
)
def test_init_finds_what_names_the_packages(
    tmp_path: Path, files: list[str], found: list[str]
) -> None:
    make_tree(tmp_path, dict.fromkeys(files, "[project]\ndependencies:\n"))
    assert find_packages(tmp_path) == found
    others = {"pyproject.toml": "[tool.ruff]\n", "environment.yml": "services: []\n"}
    make_tree(tmp_path, others)
    assert not set(others) & set(find_packages(tmp_path))
    make_tree(tmp_path, {"pyproject.toml": "[tool.poetry.dependencies]\ntimm = '*'\n"})
    assert "pyproject.toml" in find_packages(tmp_path), "which deploy then says why it won't do"
