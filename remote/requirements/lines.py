"""The lines of requirements, as pip reads them: decoded, split, checked one by one, hashed. What
most deploys need imports nothing but the standard library."""

from __future__ import annotations

import argparse
import codecs
import hashlib
import locale
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, unquote

from remote.agent.shared.text import redact
from remote.errors import UsageError
from remote.screen.text import one_line

# Options of ours, for what the project's own files say: a line of a -c file, the project's pythons,
# a folder whose package runs import from their own copy, a line of conda's environment.yml.
CONSTRAINED, LOCAL, CONDA = "--constrained-to", "--local-package", "--conda"
REQUIRES_PYTHON, PREFERS_PYTHON = "--requires-python", "--prefers-python"
OURS = (CONSTRAINED, LOCAL, CONDA, REQUIRES_PYTHON, PREFERS_PYTHON)
ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_CLAUSE = r"(?:(?:==|!=|<=|>=|<|>)[ \t]*\d+(?:\.\d+)*|~=[ \t]*\d+(?:\.\d+)+)"
_EXTRAS = rf"\[[ \t]*{NAME}(?:[ \t]*,[ \t]*{NAME})*[ \t]*\]"
PLAIN = re.compile(
    rf"{NAME}[ \t]*(?:{_EXTRAS})?[ \t]*(?:{_CLAUSE}(?:[ \t]*,[ \t]*{_CLAUSE})*)?\Z", re.ASCII
)
"""Requirements of the usual form, known to be right without `packaging`."""
REPOSITORY = re.compile(r"(?:git|hg|svn|bzr)\+")
UNNAMED = re.compile(
    rf"(?:{REPOSITORY.pattern})?(?:https?|ssh|git)://\S+|{REPOSITORY.pattern}file:///\S+"
)
_ARCHIVE = rf"/\S+(?:{'|'.join(map(re.escape, ARCHIVES))})(?=[#\s;]|\Z)"
ON_THE_SERVER = re.compile(rf"(?:{NAME}[ \t]*(?:{_EXTRAS})?[ \t]*@[ \t]*file://)?{_ARCHIVE}", re.I)
"""An archive in a folder of the server's, which its users share."""
IN_RELEASE = "file:///{release}/"
"""Before what lies in the project, and so on the server in its release."""
FROZEN = re.compile(r"\w\s*@\s*file:/")
BUILT_BY_CONDA = re.compile(r"/(?:croot|feedstock_root|build_artifacts|conda-bld)/")
ELSEWHERE = "set remote.requirements to your file, or to none"


@dataclass(frozen=True)
class Line:
    """One logical line; `where` is for people: `line 3`, or `other.txt line 3` in a file that was
    included."""

    where: str
    text: str


def read_text(path: Path, name: str, remedy: str = "correct what names it") -> str:
    """${NAME} is replaced where it is set here; the rest is pip's to replace there. `remedy`: for a
    file that is not there."""
    try:
        text = decode(path.read_bytes())
    except OSError as error:
        raise wrong(f"{name} can't be read: {error.strerror}", remedy) from None
    except ValueError:
        problem = f"{name} can't be read: its encoding is not known"
        raise wrong(problem, "save it as UTF-8") from None
    return re.sub(r"\$\{([A-Z0-9_]+)\}", lambda found: os.environ.get(found[1]) or found[0], text)


def decode(data: bytes) -> str:
    """As pip reads it: by its mark (PowerShell writes UTF-16), by a line `# -*- coding: … -*-`, as
    UTF-8, by the locale; else GB18030. UTF-16 is known without its mark, too."""
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    named = re.search(rb"coding[:=]\s*([-\w.]+)", b"\n".join(data.split(b"\n")[:2]))
    first = ["utf-16"] if is_wide else [named[1].decode()] if named else []
    if re.match(rb"(?:[^\0]\0)+\Z", data[:64]) or re.match(rb"(?:\0[^\0])+\Z", data[:64]):
        first = ["utf-16-be" if data[0] == 0 else "utf-16-le"]
    for encoding in (*first, "utf-8-sig", locale.getpreferredencoding(False), "gb18030"):
        try:
            return data.decode(encoding)
        except (LookupError, ValueError):
            continue
    raise ValueError("its encoding is not known")


def split_lines(text: str, prefix: str = "") -> list[Line]:
    """Logical lines as pip reads them: continued by a backslash, without comments and blank
    ones."""
    found: list[Line] = []
    joined, start = "", 0
    for number, raw in enumerate([*text.lstrip("\ufeff").splitlines(), ""], 1):
        is_comment = raw.lstrip().startswith("#")
        start = start or number
        if raw.endswith("\\") and not is_comment:
            joined += raw[:-1]
            continue
        joined += (" " if joined and is_comment else "") + raw
        if plain := re.sub(r"(^|\s+)#.*$", "", joined).strip():
            found.append(Line(f"{prefix}line {start}", plain))
        joined, start = "", 0
    return found


def requirements_hash(text: str) -> str:
    """Equal for texts that ask for the same: order, comments, blanks and passwords of addresses do
    not matter."""
    lines = set()
    for number, line in enumerate(split_lines(text)):
        if line.text.startswith(CONDA):
            # In YAML a line means what its place and its indentation make of it.
            lines.add(f"{number} {line.text}")
            continue
        parts = redact(line.text).split(";", 1)
        if not line.text.startswith("-"):
            parts[0] = re.sub(r"\s+", "", parts[0])
        lines.add(";".join(" ".join(part.split()) for part in parts))
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogatepass")).hexdigest()


def split_marker(text: str) -> tuple[str, str]:
    """What a line without hashes asks for, and the condition behind its semicolon; an address may
    hold one of its own."""
    parts = re.split(r"\s+;\s*|;\s+" if "/" in text else r"\s*;\s*", text, maxsplit=1)
    return parts[0].strip(), parts[1].strip() if parts[1:] else ""


def with_markers(text: str, markers: Iterable[str]) -> str:
    """A line for a package, wanted only where these conditions hold too."""
    if not markers or text.startswith("-"):
        return text
    plain, hashes = split_hashes(text)
    head, own = split_marker(plain)
    all_of = sorted({*markers, own} - {""})
    return f"{head} ; {' and '.join(f'({one})' for one in all_of)}{hashes}"


def split_hashes(text: str) -> tuple[str, str]:
    """A line without its --hash options, and these."""
    found = re.findall(r"\s--hash[= ]\s*(\S+)", text)
    plain = re.sub(r"\s--hash[= ]\s*\S+", "", text).strip()
    return plain, "".join(f" --hash={one}" for one in found)


def local_packages(text: str) -> list[str]:
    """The folders of the project's own packages in the text of requirements; `.` is the project
    itself."""
    found = [line[len(LOCAL) :].strip() for line in text.splitlines() if line.startswith(LOCAL)]
    return list(dict.fromkeys(found))


def named_archives(text: str) -> list[str]:
    """The project's own archives, and folders with some, in the text of requirements."""
    return [unquote(place) for place in re.findall(re.escape(IN_RELEASE) + r"([^\s#]+)", text)]


def in_release(text: str, root: str) -> str:
    """With the place where the project's own archives lie on the server, which pip is told."""
    plain = re.sub(rf"(--find-links {re.escape(IN_RELEASE)}\S*)#\S+", r"\1", text)
    return plain.replace(IN_RELEASE, f"file://{quote(f'{root}/current/')}")


def without_hashes(text: str) -> str:
    """pip wants hashes of all lines or of none. What an address gives is checked all the same: to
    be looked at it may have to be built."""
    plain, hashes = split_hashes(text)
    head, marker = split_marker(plain)
    found = re.fullmatch(r" --hash=(sha\d+):(\w+)", hashes)
    if found and "://" in head:
        head += f"{'&' if '#' in head else '#'}{found[1]}={found[2]}"
        return f"{head} ; {marker}" if marker else head
    return plain


class _Options(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(redact(one_line(message, 120)))


def parse_options(text: str) -> list[str]:
    """`-i URL --pre` → ["--index-url URL", "--pre"], as the agent takes them. Raises ValueError,
    with the reason, for what we don't take."""
    parser = _Options(add_help=False, allow_abbrev=False)
    for names in _WITH_VALUE:
        parser.add_argument(*names, dest="found", action="append", type=f"{names[-1]} {{}}".format)
    # Whether every line has a hash is seen here, and our installers use what they need of features.
    parser.add_argument("--require-hashes", action="store_true")
    parser.add_argument("--use-feature")
    for flag in ("--pre", "--no-index", "--prefer-binary"):
        parser.add_argument(flag, dest="found", action="append_const", const=flag)
    found = list(parser.parse_args(text.split()).found or [])
    for option, _, value in (one.partition(" ") for one in found):
        if option == "--editable":
            problem = "is no folder of a package; one outside the project does not go to the server"
            raise ValueError(f"{value} {problem}")
        if option == "--find-links" and "://" not in value and not value.startswith("/"):
            problem = "is a folder here; give an address, or an absolute path on the server"
            raise ValueError(f"{value} {problem}")
    return found


_WITH_VALUE = (
    ("-i", "--index-url"),
    ("-f", "--find-links"),
    ("-e", "--editable"),
    *((f"--{name}",) for name in ("extra-index-url", "trusted-host", "only-binary", "no-binary")),
)


def problems_of(lines: Sequence[Line]) -> list[str]:
    """What is wrong, line by line. A freeze of conda's is wrong in most, and that is said once."""
    found = []
    frozen = [line for line in lines if _is_frozen(line.text)]
    needs_hashes = any(re.match(r"-(.*\s)?-?-require-hashes\b", line.text) for line in lines)
    for line in lines:
        try:
            if line not in frozen:
                kind, values = read_line(line.text)
                if needs_hashes and kind in ("package", "address") and "--hash" not in values[-1]:
                    shown = redact(one_line(line.text, 100))
                    raise ValueError(f"{shown}: --require-hashes is set, and this has no --hash")
        except ValueError as error:
            found.append(f"{line.where}: {error}")
    if frozen:
        count = f" and {len(frozen) - 1} more lines name files" if frozen[1:] else " names a file"
        text = redact(one_line(frozen[0].text, 60))
        found.append(
            f"{frozen[0].where}: {text}{count} of the computer that wrote them, as pip freeze does"
            " in conda: write the file with `pip list --format=freeze`"
        )
    return found


def _is_frozen(text: str) -> bool:
    in_a_folder_there = ON_THE_SERVER.match(text) and not BUILT_BY_CONDA.search(text)
    return bool(FROZEN.search(text)) and not in_a_folder_there


def read_line(text: str) -> tuple[str, list[str]]:
    """Of what kind a logical line is, and what it holds: one of `OURS` with its value, `option`
    with options as the agent takes them, `address` or `package` with its --hash options behind it.
    Raises ValueError for a wrong one."""
    option, _, value = text.partition(" ")
    if option == CONSTRAINED:
        kind, values = read_line(value)
        if kind != "package":
            raise ValueError(f"{redact(one_line(value, 100))}: a constraint names a package")
        return option, values[:1]
    if option in OURS:
        return option, [value]
    plain, hashes = split_hashes(text)
    if plain.startswith("-"):
        return "option", parse_options(plain)
    shown = redact(one_line(plain, 100))
    head, marker = split_marker(plain)
    if hashes and REPOSITORY.search(head):
        problem = "a repository has no hash that could be checked: name a commit, as in …@1a2b3c"
        raise ValueError(f"{shown}: {problem}")
    if UNNAMED.fullmatch(head) or (head.startswith("/") and ON_THE_SERVER.fullmatch(head)):
        _check(f"a; {marker}" if marker else "a", shown)
        return "address", [plain + hashes]
    is_file = head.lower().endswith(ARCHIVES) and "://" not in plain
    if not PLAIN.match(plain) or is_file:
        if re.search(r"\s--?\w", plain):
            raise ValueError(f"{shown}: options beside a requirement are not supported")
        if is_file or re.match(r"(\S+\s*@\s*file:(?!/)|\.{0,2}[/\\]|~|file:|[A-Za-z]:[/\\])", head):
            raise ValueError(f"{shown}: a path of this computer can't be installed there")
        if "，" in plain or "；" in plain:
            problem = "a full-width comma or semicolon (，；), where pip takes , and ;"
            raise ValueError(f"{shown}: {problem}")
        if conda := re.match(r"([\w.-]+)=([\w.*]+)(?:=\w+)?$", plain):
            raise ValueError(f"{shown}: conda's form; pip's is {conda[1]}=={conda[2]}")
        _check(plain, shown)
    return "package", [plain, hashes]


def _check(requirement: str, shown: str) -> None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        Requirement(requirement)
    except InvalidRequirement as error:
        problem = one_line(redact(str(error).splitlines()[0]), 120)
        raise ValueError(f"{shown}: {problem}") from None


def wrong_lines(
    problems: Sequence[str], name: str = "the requirements", remedies: Sequence[str] = ()
) -> UsageError:
    """`remedies`: those of some of the problems."""
    count = "a wrong line" if len(problems) == 1 else f"{len(problems)} wrong lines"
    usual = ["correct them; nothing was sent"] if len(remedies) < len(problems) else []
    remedy = "; ".join(dict.fromkeys([*remedies, *usual]))
    return wrong(f"{name}: {count}: {'; '.join(problems)}", remedy)


def wrong(message: str, remedy: str) -> UsageError:
    return UsageError(message, step="requirements", remedy=remedy)
