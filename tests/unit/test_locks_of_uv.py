"""uv.lock as requirements: indexes, groups, extras, versions for several pythons."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote.errors import UsageError
from remote.requirements.parsed import Requirements, applicable, parse_requirements
from remote.requirements.reading import read_requirements
from tests.support.project import make_tree


def test_a_lock_with_versions_for_several_pythons_keeps_the_hashes_of_each() -> None:
    old = "a==1; python_version < '3.10' --hash=sha256:11\n"
    found = parse_requirements(old + "a==2; python_version >= '3.10' --hash=sha256:22\n")
    assert found.hashes == {"a": " --hash=sha256:11 --hash=sha256:22"} and len(found.lines) == 2


PYPI, CU126 = "https://pypi.org/simple", "https://download.pytorch.org/whl/cu126"


LOCK = f"""version = 1
[[package]]
name = "mine"
source = {{ virtual = "." }}
dependencies = [{{ name = "a" }}, {{ name = "b", marker = "sys_platform == 'linux'" }}]
[package.optional-dependencies]
cpu = [{{ name = "torch", version = "2.9.0" }}]
cu126 = [{{ name = "torch", version = "2.9.0+cu126" }}]
[[package]]
name = "a"
version = "1"
source = {{ registry = "{PYPI}" }}
dependencies = [
    {{ name = "b", marker = "platform_machine == 'x86_64'" }},
    {{ name = "torch", version = "2.9.0", marker = "extra != 'extra-4-mine-cu126'" }},
    {{ name = "torch", version = "2.9.0+cu126", marker = "extra == 'extra-4-mine-cu126'" }},
]
[[package]]
name = "b"
version = "1"
source = {{ registry = "{PYPI}" }}
dependencies = [{{ name = "a", marker = "os_name == 'posix'" }}]
[[package]]
name = "torch"
version = "2.9.0"
source = {{ registry = "{PYPI}" }}
[[package]]
name = "torch"
version = "2.9.0+cu126"
source = {{ registry = "{CU126}" }}
"""


def lock_of(folder: Path, extra: str) -> Requirements:
    (folder / "uv.lock").write_text(LOCK)
    return parse_requirements(read_requirements(folder, "uv.lock" + extra))


def test_a_lock_names_the_indexes_beside_the_usual_one(tmp_path: Path) -> None:
    """As tool.uv.sources has it for torch; which mirror of PyPI is the server's business."""
    assert lock_of(tmp_path, "[cu126]").options == (f"--extra-index-url {CU126}",)


@pytest.mark.parametrize(
    ("extra", "versions"), [("", {"2.9.0"}), ("[cpu]", {"2.9.0"}), ("[cu126]", {"2.9.0+cu126"})]
)
def test_extras_of_a_lock_that_exclude_each_other(
    tmp_path: Path, extra: str, versions: set[str]
) -> None:
    found = applicable(lock_of(tmp_path, extra).lines, {"sys_platform": "linux"})
    assert {str(one.specifier)[2:] for one in found if one.name == "torch"} == versions


def test_a_package_of_a_lock_that_lies_in_a_folder_of_a_repository(tmp_path: Path) -> None:
    source = "https://h/r.git?subdirectory=libs%2Fx&rev=main#" + 40 * "c"
    text = LOCK.replace(f'{{ registry = "{CU126}" }}', f'{{ git = "{source}" }}')
    (tmp_path / "uv.lock").write_text(text)
    found = parse_requirements(read_requirements(tmp_path, "uv.lock[cu126]"))
    wanted = f"git+https://h/r.git@{40 * 'c'}#subdirectory=libs/x"
    assert wanted in [one.url for one in found.lines]
    (tmp_path / "uv.lock").write_text(text.replace(f'git = "{source}"', 'path = "wheels/t.whl"'))
    with pytest.raises(UsageError, match="a path of this computer"):
        read_requirements(tmp_path, "uv.lock[cu126]")


GROUPED = "".join(
    f'[[package]]\nname = "{name}"\nversion = "1"\nsource = {{ registry = "{PYPI}" }}\n'
    for name in "abc"
)


GROUPED += """[[package]]
name = "mine"
source = { editable = "." }
dependencies = [{ name = "a" }]
[package.dev-dependencies]
dev = [{ name = "b" }]
docs = [{ name = "c" }]
"""


@pytest.mark.parametrize(
    ("tool", "extra", "names"),
    [
        ("", "", {"a", "b"}),
        ('default-groups = ["docs"]', "", {"a", "c"}),
        ("default-groups = []", "", {"a"}),
        ("default-groups = []", "[dev]", {"a", "b"}),
        ('default-groups = "all"', "", {"a", "b", "c"}),
    ],
)
def test_groups_of_a_lock_that_uv_installs_by_itself(
    tmp_path: Path, tool: str, extra: str, names: set[str]
) -> None:
    (tmp_path / "uv.lock").write_text(GROUPED)
    if tool:
        (tmp_path / "pyproject.toml").write_text(f"[tool.uv]\n{tool}\n")
    found = parse_requirements(read_requirements(tmp_path, "uv.lock" + extra))
    assert set(found.names) == names


def test_a_lock_in_a_folder_names_packages_beside_it(tmp_path: Path) -> None:
    make_tree(tmp_path, {"sub/uv.lock": GROUPED})
    assert read_requirements(tmp_path, "sub/uv.lock").endswith("--local-package sub\n")


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (["a>1", "b"], None),
        (["a>=1", "b"], "uv.lock is older than pyproject.toml, which asks for a>=1"),
        (["a>1", "b<2", "new"], "which asks for new"),
        (["a>1", "b", "c"], "which asks for c"),
        (["a>1", "b", "d>1"], "which asks for d>1"),
    ],
)
def test_a_lock_older_than_what_it_locks_is_not_used(
    tmp_path: Path, needs: list[str], said: str | None
) -> None:
    metadata = (
        "[package.metadata]\n"
        'requires-dist = [{ name = "a", specifier = ">1" }, { name = "b", git = "https://h/b" },\n'
        """{ name = "c", marker = "extra == 'x'" }, { name = "d" }]\n"""
    )
    text = LOCK.replace('[[package]]\nname = "a"', metadata + '[[package]]\nname = "a"')
    about = f'[project]\nname = "mine"\nversion = "1"\ndependencies = {needs}\n'
    make_tree(tmp_path, {"uv.lock": text, "pyproject.toml": about})
    if said is None:
        assert "a" in parse_requirements(read_requirements(tmp_path, "uv.lock")).names
    else:
        with pytest.raises(UsageError, match=said):
            read_requirements(tmp_path, "uv.lock")


@pytest.mark.parametrize(
    "text", ["package = 3\n", LOCK.replace('version = "1"\nsource', "source"), "package = [1]\n"]
)
def test_a_lock_that_uv_did_not_write_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "uv.lock").write_text(text)
    with pytest.raises(UsageError, match=r"uv\.lock is not as uv writes it .*"):
        read_requirements(tmp_path, "uv.lock")


def test_packages_of_a_lock_that_need_each_other_are_read_to_an_end(tmp_path: Path) -> None:
    assert set(lock_of(tmp_path, "").names) == {"a", "b", "torch"}
