"""The documents say what the program does: both READMEs the same commands, all of which exist."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from remote.agent.shared.states import Cause
from remote.records import Run
from remote.screen.language import load
from remote.watching.listing import run_json
from tests.support.messages import read_catalogue, template

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.zh-CN.md")
HALF = re.compile(r"[,;:?!()]|[\u4e00-\u9fff]\.")
HALF_BESIDE_CHINESE = re.compile(
    r"[\u3001-\u9fff\uff01-\uff5e][,.;:?!()]|[,;:?!()][\u3001-\u9fff\uff01-\uff5e]|\w;"
)


def commands_of(name: str) -> list[str]:
    """The indented lines, without their comments."""
    lines = re.findall(r"^    (\S.*)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return [" ".join(re.split(r"\s+#\s|\s\(", line)[0].split()) for line in lines]


def test_both_readmes_show_the_same_commands() -> None:
    assert commands_of(READMES[0]) == commands_of(READMES[1])


def test_the_demo_s_screen_is_in_the_page_s_language() -> None:
    ours, theirs = (
        (ROOT / name).read_text(encoding="utf-8").split("```\n")[1].splitlines() for name in READMES
    )
    assert [load("zh_CN").translate(line) for line in ours] == theirs


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert links and [link for link in links if not (ROOT / link).exists()] == []


@pytest.fixture(scope="module")
def tasks() -> dict[str, str]:
    """Every task of `fab --list` and its help."""
    listed = subprocess.run(
        [sys.executable, "-m", "fabric", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = re.findall(r"^  ([a-z][a-z-]+)", listed, re.MULTILINE)
    assert len(names) > 8
    helps = {}
    for name in names:
        helps[name] = subprocess.run(
            [sys.executable, "-m", "fabric", "--help", name],
            cwd=ROOT,
            capture_output=True,
            text=True,
        ).stdout
    return helps


def test_every_task_in_the_documents_exists_with_its_options(tasks: dict[str, str]) -> None:
    told = [
        line
        for name in ("README.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")))
        for line in commands_of(name)
    ]
    for line in told:
        words = line.partition(" -- ")[0].split()  # what follows belongs to the command
        if words[0] != "fab" or "→" in line or "demo" in words[1:2]:
            continue
        rest = words[3:] if words[1] == "-H" else words[1:]
        if rest[0].startswith("-"):
            continue
        assert rest[0] in tasks, line
        for option in re.findall(r"--[a-z][a-z-]*", " ".join(rest[1:])):
            assert option in tasks[rest[0]], line


def test_every_field_for_scripts_is_explained() -> None:
    table = (ROOT / "docs" / "scripting.md").read_text().split("| field |")[1].split("\n\n")[0]
    told = set(
        re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in table.splitlines()[2:]))
    )
    assert told == set(run_json(Run("r"), "host"))


def test_every_cause_of_an_end_is_named() -> None:
    page = (ROOT / "docs" / "scripting.md").read_text()
    told = page.split("A `cause` is one of ")[1].split("\n\n")[0]
    assert re.findall(r"`([^`]+)`", told) == list(get_args(Cause))


def test_the_lock_holds_what_the_requirements_name() -> None:
    """`uv lock` makes it anew."""
    locked = set(re.findall(r'^name = "(.+)"$', (ROOT / "uv.lock").read_text(), re.MULTILINE))
    named: set[str] = set()
    for folder in ("remote", "trainer", "tests"):
        text = (ROOT / folder / "requirements.txt").read_text()
        named |= set(re.findall(r"^([A-Za-z][\w-]*)", text, re.MULTILINE))
    assert {name.lower() for name in named} - locked == set()


def test_every_task_is_in_the_readme_and_explains_itself(tasks: dict[str, str]) -> None:
    shown = " ".join(commands_of("README.md"))
    for name, text in tasks.items():
        assert re.search(rf"\bfab (?:-H \S+ )?{name}\b", shown), name
        assert "Docstring:" in text and (name == "demo" or "Exit codes:" in text), name


@functools.lru_cache
def texts_of_the_program() -> set[str]:
    """As the pages quote them: with … for what is filled in."""
    found = set()
    for file in (*(ROOT / "remote").rglob("*.py"), *(ROOT / "trainer").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        documentation = {id(one.value) for one in nodes if isinstance(one, ast.Expr)}
        for node in nodes:
            match node:
                case ast.JoinedStr() | ast.Constant(value=str()) if id(node) not in documentation:
                    found.add(as_quoted(template(node)))
    return found


def as_quoted(text: str) -> str:
    return re.sub(r"(\{\d+\})+", "…", text).replace("{{", "{").replace("}}", "}")


def symptoms(form: str) -> list[str]:
    """The first column of all tables of a page."""
    page = (ROOT / "docs" / f"troubleshooting{form}.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| .+ \| .+ \|$", page, re.MULTILINE)
    assert len(rows) > 60
    return [row for row in rows if row not in ("you see", "你看到的")]


def quotes(symptom: str) -> list[str]:
    return re.findall(r"`((?!--).+?)`", symptom)


def test_troubleshooting_quotes_what_the_program_says() -> None:
    told = [quote for symptom in symptoms("") for quote in quotes(symptom)]
    unknown = [one for one in told if not any(one in text for text in texts_of_the_program())]
    assert len(told) > 60 and unknown == []


def test_both_troubleshooting_pages_quote_the_same_lines() -> None:
    assert list(map(quotes, symptoms(".zh-CN"))) == list(map(quotes, symptoms("")))


def test_troubleshooting_in_chinese_says_what_the_screen_says() -> None:
    """Beside a line of the trainer, which stays English, stands no Chinese."""
    lines = [(as_quoted(str(one.id)), as_quoted(str(one.string))) for one in read_catalogue()]
    for symptom in symptoms(".zh-CN"):
        pairs = re.findall(r"([^（）]*)（`(.+?)`）", symptom)
        assert {quote for _, quote in pairs} == {
            one for one in quotes(symptom) if any(one in told for told, _ in lines)
        }
        for chinese, quote in pairs:
            shown = chinese.lstrip("；：…，")
            assert any(quote in told and shown in theirs for told, theirs in lines), shown


@pytest.mark.parametrize("name", ["README.zh-CN.md", "docs/troubleshooting.zh-CN.md"])
def test_chinese_pages_have_full_width_punctuation(name: str) -> None:
    """Half-width stays in code, links, numbers and quoted words; in comments of examples where it
    touches nothing Chinese."""
    page = (ROOT / name).read_text(encoding="utf-8")
    wrong = []
    for line in filter(re.compile("[\u4e00-\u9fff]").search, page.splitlines()):
        prose = re.sub(r"`[^`]*`|!\[|\]\([^)]*\)|\d,\d{3}|\w\(\)", "", line)
        example = line.startswith("    ")
        wrong += [line] if (HALF_BESIDE_CHINESE if example else HALF).search(prose) else []
    assert wrong == []
