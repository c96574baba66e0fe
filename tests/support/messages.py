"""The messages in the code that people may see, and the catalogue of their translations.

`make messages` brings remote/locale up to date and names what is not translated yet."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from remote.screen.language import TITLE

ROOT = Path(__file__).resolve().parents[2]
PO = ROOT / "remote/locale/zh_CN/LC_MESSAGES/remote.po"
MO = PO.with_suffix(".mo")

PROSE = re.compile(
    r"[A-Za-z]{2,}(?:'s|[,;:')’]*) \(?[A-Za-z]{2,}"  # words next to each other
    r"|\ba [a-z]{3,}"
    # or beside a place
    r"|(?<![-\w])(?:of|[a-z]{3,}):? +\{|^ [a-z]{2} \{|\}(?:'s|[,;:])? \(?[a-z]{2,}"
)
COMMAND = re.compile(
    r"\s*(?:(?:\$ )?(?:fab|git|sudo|shutdown)(?: -\S+ \S+)*(?: \{\d+\}| [a-z-]+)?"
    r"(?: --?[a-z-]+(?: [^a-z ]\S*)?)*|python -m [\w.]+|(?:pip|apt|git|gh) \w+ \S+|train --.*)\s*"
)
CODE = re.compile(
    r"[|\\]|\$[(\"!@]|\"\$|\bimport \w+[,;]|^[#%]|^import |=\{0\}|^\s*-\S+ \S+$|%[ds.]| @ git"
    r"|\n[^\n]*\n"
)
WORDS = (
    *("error", "warning", "note", "waiting", "kept", "not sent", "not fetched", "ok", "problem"),
    *("running", "queued", "finished", "failed", "stopped", "unknown", "unreachable", "asking"),
    *("idle", "busy", "free", "none", "nobody", "somebody", "nothing", "number", "text", "loss"),
    *("accuracy", "starting", "validating", "testing", "preempted", "embedded", "interrupted"),
    *("diverged", "sent", "inspect", "resolve", "packages", "check", "prove", "CUDA {0}"),
    *("run", "release", "environment", "images", "leftover", "{0} s", "%d %b %H:%M"),
    *("{0} warning", "{0} warnings", "{0} problem", "{0} running", "{0} queued", "{0} finished"),
    *(
        "{0} failed",
        "{0} stopped",
        "{0} not started",
        "{0} not asked",
        "{0} unknown",
        "{0} unreachable",
        "{0} not found",
        "not found",
        "found",
        "test accuracy {0}",
        "since {0} h",
        "since {0} min",
    ),
)
"""Too short to be told from names in the code."""
UNSEEN = ("loopback/accounts.py", "loopback/openssh.py", "link/agent_program.py", "__main__.py")
UNSEEN_FUNCTIONS = ("readme", "recipe_text")
"""A submission's README stays English."""
UNSEEN_CALLS = re.compile(
    r"re\.|log(ger|ging)?\.|LOG\.|.*\.(encode|decode|open|startswith|strftime|removeprefix"
    r"|partition|replace|highlight_regex)$"
)


def template(node: ast.Constant | ast.JoinedStr) -> str:
    """`{0}`, `{1}` where something is filled in; in a plain string that is `{name}`."""
    if isinstance(node, ast.Constant):
        texts = re.split(r"\{\w+(?::\w+)?\}", str(node.value))
    else:
        texts = [""]
        for part in node.values:
            if isinstance(part, ast.Constant):
                texts[-1] += str(part.value)
            else:
                texts.append("")
    texts = [text.replace("{", "{{").replace("}", "}}") for text in texts]
    return "".join(f"{text}{{{n}}}" for n, text in enumerate(texts[:-1])) + texts[-1]


def is_message(text: str) -> bool:
    return bool(PROSE.search(text)) and not CODE.search(text) and not COMMAND.fullmatch(text)


def messages(node: ast.AST) -> Iterator[str]:
    """All that a person may see of this piece of code."""
    match node:
        case ast.JoinedStr() | ast.Constant(value=str()):
            if is_message(told := template(node)):
                yield told
            if isinstance(node, ast.JoinedStr):
                for part in node.values:
                    yield from messages(part.value) if isinstance(part, ast.FormattedValue) else ()
            return
        case ast.arg() | ast.Expr(value=ast.Constant()):
            return
        case ast.FunctionDef(name=name) if name in UNSEEN_FUNCTIONS:
            return
        case ast.Call(func=called) if UNSEEN_CALLS.match(ast.unparse(called)):
            return
        case ast.Call(func=ast.Name(id="Column"), args=[ast.Constant(value=word), *_]):
            yield TITLE + str(word)
            return
        case ast.Call(
            func=ast.Name(id="fine" | "warning" | "problem" | "failed"),
            args=[ast.Constant(value=word), *rest],
        ):
            yield TITLE + str(word)
            for one in rest:
                yield from messages(one)
            return
        case ast.keyword(arg="step", value=ast.Constant(value=str(word))):
            yield TITLE + word
            return
        case ast.FunctionDef(decorator_list=[ast.Call(func=ast.Name(id="task"))]):
            yield from paragraphs(ast.get_docstring(node) or "")
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "slice"):
            continue
        for child in value if isinstance(value, list) else [value]:
            compared = isinstance(node, ast.Compare) and isinstance(child, ast.Constant)
            if isinstance(child, ast.AST) and not compared:
                yield from messages(child)


def paragraphs(text: str) -> list[str]:
    """Of a task's docstring; of its examples the comments."""
    told = [one for one in text.split("\n\n") if not one.startswith("    ")]
    return told + re.findall(r"  # (.*)", text)


def find_messages() -> set[str]:
    found = set(WORDS)
    for file in (ROOT / "remote").rglob("*.py"):
        place = file.relative_to(ROOT / "remote").as_posix()
        if place not in UNSEEN:
            told = messages(ast.parse(file.read_text(encoding="utf-8")))
            steps = place.startswith("agent/")  # which are names of its own
            found.update(one for one in told if not (steps and one.startswith(TITLE)))
    return found


def read_catalogue() -> Catalog:
    with PO.open("rb") as file:
        return read_po(file)


def main() -> int:
    """Exits with 1 where something is not translated."""
    catalogue, code = read_catalogue(), Catalog()
    for message in find_messages():
        context, _, told = message.rpartition(TITLE[-1])
        code.add(told, context=context or None)
    catalogue.update(code, update_creation_date=False)
    catalogue.obsolete.clear()
    with PO.open("wb") as file:
        write_po(file, catalogue, width=100, sort_output=True, ignore_obsolete=True)
    with MO.open("wb") as file:
        write_mo(file, catalogue)
    missing = [one for one in catalogue if one.id and (one.fuzzy or not one.string)]
    for one in missing:
        sys.stdout.write(f"not translated: {one.id!r}\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
