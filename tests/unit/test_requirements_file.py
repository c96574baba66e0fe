"""The requirements file: what it includes, what is wrong in it, and when two are the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from remote.errors import UsageError
from remote.project.init import find_packages
from remote.requirements.lines import (
    PLAIN,
    parse_options,
    requirements_hash,
    split_lines,
    without_hashes,
)
from remote.requirements.parsed import Requirements, applicable, parse_requirements
from remote.requirements.reading import read_requirements
from tests.support.project import REPOSITORY, make_tree


def test_our_own_files_are_right() -> None:
    names = parse_requirements(read_requirements(REPOSITORY, "requirements.txt")).names
    assert {"fabric", "torch", "pytorch-lightning"} <= set(names)


def test_included_files_stand_in_their_places(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "requirements.txt": "a\n-r sub/more.txt\n--requirement=last.txt\n-c limits.txt\n",
            "sub/more.txt": "b\n-r deeper.txt # below sub\n",
            "sub/deeper.txt": "c\n",
            "last.txt": "d\na\n",
            "limits.txt": "b<2\n--pre\n",
        },
    )
    found = parse_requirements(read_requirements(tmp_path, "requirements.txt"))
    assert found.names == ("a", "b", "c", "d")
    assert [str(limit) for limit in found.constraints] == ["b<2"] and found.options == ("--pre",)


def test_every_wrong_line_is_named_with_its_place(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "r.txt": (
                "fine>=1\n"
                "\n"
                "torch>=>2\n"
                "-e .\n"
                "./local\n"
                "pkg-1.0-py3-none-any.whl\n"
                "x \\\n"
                "  >=1\n"
                "https://host/y.whl\n"
                "z --hash=sha256:00\n"
                "-r r.txt\n"
                "-r missing.txt\n"
                "-r https://me:secret@host/r.txt\n"
                "--frobnicate\n"
                "-f wheels\n"
                "-r other.txt\n"
                "n @ file:///n\n"
            ),
            "other.txt": "# fine\n!!\n",
        },
    )
    with pytest.raises(UsageError) as caught:
        read_requirements(tmp_path, "r.txt")
    message = caught.value.message
    for part in (
        "line 3: torch>=>2: ",
        "line 4: .: neither pyproject.toml",
        "line 5: ./local: a path",
        "line 6: pkg-1.0-py3-none-any.whl: a path",
        "line 11: r.txt includes itself",
        "missing.txt can't be read",
        "line 13: https://****@host/r.txt",
        "line 14: unrecognized arguments: --frobnicate",
        ": wheels is a folder here",
        "other.txt line 2: !!",
        "line 17: n @ file:///n names a file of the computer that wrote them",
    ):
        assert part in message, part
    assert "11 wrong lines" in message and "secret" not in message and "\n" not in message
    assert (
        "line 1:" not in message
        and "line 7" not in message
        and "line 9" not in message
        and "line 10" not in message
    )


def test_a_cycle_through_others_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a.txt": "-r b.txt", "b.txt": "-r sub/../a.txt"})
    with pytest.raises(UsageError, match="includes itself"):
        read_requirements(tmp_path, "a.txt")


@pytest.mark.parametrize(("content", "remedy"), [(None, "none"), (b"\xff\xfe\xff", "UTF-8")])
def test_a_file_that_cannot_be_read_says_how_to_go_without(
    tmp_path: Path, content: bytes | None, remedy: str
) -> None:
    if content is not None:
        (tmp_path / "r.txt").write_bytes(content)
    with pytest.raises(UsageError, match=r"r\.txt can't be read") as caught:
        read_requirements(tmp_path, "r.txt")
    assert remedy in str(caught.value.remedy)


FREEZE = "a @ file:///croot/a_1/work\nb==1\nc @ file:///croot/c/work\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FREEZE, "line 1: a @ file:///croot/a_1/work and 1 more lines name files"),
        (FREEZE, "`pip list --format=freeze`"),
        ("numpy=1.24=py311_0\n", "numpy=1.24=py311_0: conda's form; pip's is numpy==1.24"),
        ("numpy>=1，<2\n", "a full-width comma"),
    ],
)
def test_what_others_write_is_explained_in_one_sentence(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "r.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_requirements(tmp_path, "r.txt")
    assert said in caught.value.message and "a wrong line" in caught.value.message


@pytest.mark.parametrize(
    ("line", "unnamed"),
    [
        (f"https://h/x.whl --hash=sha256:{64 * '0'}", f"https://h/x.whl --hash=sha256:{64 * '0'}"),
        ("git+https://h/x ; os_name == 'nt'", "git+https://h/x ; os_name == 'nt'"),
        ("git+file:///srv/repo", "git+file:///srv/repo"),
        ("/opt/wheels/x-1-py3-none-any.whl", "/opt/wheels/x-1-py3-none-any.whl"),
    ],
)
def test_addresses_go_to_pip_as_they_stand(tmp_path: Path, line: str, unnamed: str) -> None:
    (tmp_path / "r.txt").write_text(line)
    found = parse_requirements(read_requirements(tmp_path, "r.txt"))
    assert found.unnamed == (unnamed,) and not found.lines


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("a==1 --hash=sha256:11 --hash=sha256:22", "a==1"),
        ("https://h/a.tar.gz --hash=sha256:11", "https://h/a.tar.gz#sha256=11"),
        (
            "a @ https://h/a.zip#egg=a ; os_name=='nt' --hash=sha256:11",
            "a @ https://h/a.zip#egg=a&sha256=11 ; os_name=='nt'",
        ),
    ],
)
def test_what_an_address_gives_is_checked_before_it_is_built(line: str, asked: str) -> None:
    assert without_hashes(line) == asked


def test_a_wheel_on_the_server_may_have_a_name(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("x @ file:///opt/wheels/x-1-py3-none-any.whl\n")
    [one] = parse_requirements(read_requirements(tmp_path, "r.txt")).lines
    assert one.url == "file:///opt/wheels/x-1-py3-none-any.whl"


HASHED = f"a==1 --hash=sha256:{64 * '1'}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("git+https://h/x@main --hash=sha256:00\n", "a repository has no hash"),
        ("x @ git+https://h/x --hash=sha256:00\n", "name a commit"),
        ("https://h/x.whl ; nonsense\n", "https://h/x.whl ; nonsense: "),
        ("--require-hashes\n" + HASHED + "b==1\n", "line 3: b==1: --require-hashes is set"),
        ("x @ file:libs/x\n", "x @ file:libs/x: a path of this computer"),
        ("x @ file:///home/feedstock_root/x_1/dist/x-1.whl\n", "as pip freeze does in conda"),
    ],
)
def test_what_cannot_be_checked_or_had_there_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.txt").write_text(text)
    with pytest.raises(UsageError, match=re.escape(said)):
        read_requirements(tmp_path, "r.txt")


def test_options_of_pip_that_say_nothing_to_us_are_taken(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("--require-hashes\n--use-feature=fast-deps\n" + HASHED)
    found = parse_requirements(read_requirements(tmp_path, "r.txt"))
    assert found.options == () and found.hashes == {"a": f" --hash=sha256:{64 * '1'}"}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_known_without_its_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "r.txt").write_bytes("demo-pkg\r\nb\r\n".encode(encoding))
    assert read_requirements(tmp_path, "r.txt") == "demo-pkg\nb\n"


def test_a_missing_file_that_is_included_has_a_remedy_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("-r missing.txt\n")
    with pytest.raises(UsageError) as caught:
        read_requirements(tmp_path, "r.txt")
    assert caught.value.remedy == "correct what names it"


def test_remedies_of_packages_are_kept(tmp_path: Path) -> None:
    make_tree(tmp_path, {"r.txt": "-e .\n", "pyproject.toml": "[tool.poetry]\nname = 'x'\n"})
    with pytest.raises(UsageError) as caught:
        read_requirements(tmp_path, "r.txt")
    assert str(caught.value.remedy).startswith("give it a [project] table")
    (tmp_path / "r.txt").write_text("-e .\na=>1\n")
    with pytest.raises(UsageError) as caught:
        read_requirements(tmp_path, "r.txt")
    assert str(caught.value.remedy).endswith("poetry export wrote; correct them; nothing was sent")


def test_an_editable_address_is_a_package_and_names_are_filled_in_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_HERE", "abc")
    text = "-e git+https://${TOKEN_HERE}@h/x.git@main#egg=x\ny @ git+https://${NOT_HERE}@h/y\n"
    (tmp_path / "r.txt").write_text(text)
    assert read_requirements(tmp_path, "r.txt").splitlines() == [
        "x @ git+https://abc@h/x.git@main#egg=x",
        "y @ git+https://${NOT_HERE}@h/y",
    ]


def test_the_pythons_of_the_project_go_along(tmp_path: Path) -> None:
    about = '[project]\nname = "x"\nrequires-python = ">= 3.10, <3.13"\n'
    make_tree(tmp_path, {"r.txt": "a\n", "pyproject.toml": about, ".python-version": "3.11.4\n"})
    found = parse_requirements(read_requirements(tmp_path, "r.txt"))
    assert (found.python, found.preferred, found.names) == (">=3.10,<3.13", "3.11.4", ("a",))
    make_tree(tmp_path, {"pyproject.toml": "[project", ".python-version": "my-env\n"})
    assert read_requirements(tmp_path, "r.txt") == "a\n"


@pytest.mark.parametrize("bound", [">=3.6.*", "=3.10", "^3.10", "~=3", "3.11"])
def test_bounds_of_python_that_pip_would_not_take_bound_nothing(tmp_path: Path, bound: str) -> None:
    make_tree(tmp_path, {"pyproject.toml": f'[project]\nname = "x"\nrequires-python = "{bound}"\n'})
    (tmp_path / "r.txt").write_text("a\n")
    assert parse_requirements(read_requirements(tmp_path, "r.txt")).python == ""


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


def test_lines_are_read_as_pip_reads_them() -> None:
    text = "\ufeffa # comment\n#whole\nb#1\n\n  c \\\n  >=1 \\\n  ,<2\nd \\\n# cut\ne"
    assert [(line.where, line.text) for line in split_lines(text)] == [
        ("line 1", "a"),
        ("line 3", "b#1"),
        ("line 5", "c   >=1   ,<2"),
        ("line 8", "d"),
        ("line 10", "e"),
    ]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("-i https://x/simple --pre", ["--index-url https://x/simple", "--pre"]),
        ("--extra-index-url=https://x/s?a=b", ["--extra-index-url https://x/s?a=b"]),
        ("-f /wheels --no-index", ["--find-links /wheels", "--no-index"]),
        ("--only-binary :all:", ["--only-binary :all:"]),
        ("--trusted-host h", ["--trusted-host h"]),
    ],
)
def test_options_take_the_form_that_the_agent_takes(text: str, options: list[str]) -> None:
    assert parse_options(text) == options


LINES = st.lists(
    st.sampled_from(
        ["a>=1", "b[x]", "c; python_version<'3'", "-i https://x/simple", "d @ https://h/d.whl"]
    ),
    max_size=5,
)
NOISE = st.sampled_from(["", "  ", "# comment", "\t# x"])


@given(LINES, st.randoms(), NOISE)
def test_order_comments_and_blanks_do_not_change_the_hash(
    lines: list[str], random: object, noise: str
) -> None:
    shuffled = [
        part for line in lines for part in (noise, f"  {line.replace('>=', ' >= ')}  # why")
    ]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert requirements_hash("\n".join(shuffled)) == requirements_hash("\r\n".join(lines))


@given(LINES, LINES)
def test_other_requirements_have_another_hash(first: list[str], second: list[str]) -> None:
    assume(set(first) != set(second))
    assert requirements_hash("\n".join(first)) != requirements_hash("\n".join(second))


def test_a_new_password_of_an_index_is_no_change() -> None:
    assert requirements_hash("-i https://me:old@x/simple") == requirements_hash(
        "-i https://me:new@x/simple"
    )
    assert requirements_hash("-i https://me@x/simple") != requirements_hash(
        "-i https://me@y/simple"
    )


@given(st.from_regex(PLAIN, fullmatch=True))
def test_what_is_taken_for_right_at_a_glance_is_right(line: str) -> None:
    Requirement(line)


@given(st.text() | st.lists(st.text("-rcief:=./\\@#;[]<>~! \"'ab1\n", max_size=30)).map("\n".join))
@example("-r")
@example("--index-url")
@example("a ; python_version < ")
@example("a[")
@example("\x00")
def test_hostile_text_is_either_refused_or_plain(text: str) -> None:
    requirements_hash(text)
    try:
        found = parse_requirements(text)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    taken = r"--(index-url|extra-index-url|find-links|trusted-host|only-binary|no-binary) \S+"
    for option in found.options:
        assert re.fullmatch(rf"{taken}|--(pre|no-index|prefer-binary)", option)
    assert not any(
        str(requirement).startswith("-") or "\n" in str(requirement)
        for requirement in (*found.lines, *found.constraints)
    )


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
        (["poetry.lock", "setup.py"], []),
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
