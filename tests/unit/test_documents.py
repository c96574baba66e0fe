"""The documents say what the program does: both READMEs the same commands, all of which exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from remote.records import Run
from remote.runs.listing import run_json

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.zh-CN.md")


def commands_of(name: str) -> list[str]:
    """The indented lines, without their comments."""
    lines = re.findall(r"^    (\S.*)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return [" ".join(re.split(r"\s+#\s|\s\(", line)[0].split()) for line in lines]


def test_both_readmes_show_the_same_commands() -> None:
    assert commands_of(READMES[0]) == commands_of(READMES[1])


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


def test_both_troubleshooting_pages_quote_the_same_lines() -> None:
    """What the program says stays English in both."""
    pages = [ROOT / "docs" / f"troubleshooting{form}.md" for form in ("", ".zh-CN")]
    english, chinese = (page.read_text(encoding="utf-8").split("\n## ") for page in pages)
    counts = [[part.count("\n| ") for part in page] for page in (english, chinese)]
    assert counts[0] == counts[1]
