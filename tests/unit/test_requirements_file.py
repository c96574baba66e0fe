"""The requirements file: what it includes, what is wrong in it, and when two are the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from remote.errors import UsageError
from remote.requirements.lines import (
    PLAIN,
    parse_options,
    requirements_hash,
    split_lines,
    without_hashes,
)
from remote.requirements.parsed import parse_requirements
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
