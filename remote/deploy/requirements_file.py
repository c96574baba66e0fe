"""The requirements file: read with what it includes, checked line by line, hashed, and compared
with what is installed.

What most deploys need (reading and hashing) imports nothing but the standard library; `packaging`
is imported where versions and markers are judged. In the text that `read_requirements` returns,
`--constrained-to NAME…` stands for each line of a `-c` file, and other options of ours for what
the project's own files say: its pythons, its packages, conda's lines.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from remote.agent.shared.text import redact
from remote.deploy.requirements_forms import (
    CONDA,
    LOCAL,
    Lock,
    decode,
    package_lines,
    python_bounds,
    split_extras,
)
from remote.errors import UsageError
from remote.screen.text import one_line

if TYPE_CHECKING:
    from packaging.requirements import Requirement

CONSTRAINED = "--constrained-to"
REQUIRES_PYTHON, PREFERS_PYTHON = "--requires-python", "--prefers-python"
OURS = (CONSTRAINED, REQUIRES_PYTHON, PREFERS_PYTHON, LOCAL, CONDA)
WITH_VALUE = {
    "-i": "--index-url",
    "--index-url": "--index-url",
    "--extra-index-url": "--extra-index-url",
    "-f": "--find-links",
    "--find-links": "--find-links",
    "--trusted-host": "--trusted-host",
    "--only-binary": "--only-binary",
    "--no-binary": "--no-binary",
}
FLAGS = ("--pre", "--no-index", "--prefer-binary")
ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_CLAUSE = r"(?:(?:==|!=|<=|>=|<|>)[ \t]*\d+(?:\.\d+)*|~=[ \t]*\d+(?:\.\d+)+)"
_COMMA = r"[ \t]*,[ \t]*"
PLAIN = re.compile(
    rf"{_NAME}[ \t]*(?:\[[ \t]*{_NAME}(?:{_COMMA}{_NAME})*[ \t]*\])?["
    rf" \t]*(?:{_CLAUSE}(?:{_COMMA}{_CLAUSE})*)?\Z",
    re.ASCII,
)
"""Requirements of the usual form, known to be right without `packaging`."""
FOLDER = re.compile(
    r"(?:(?:-e|--editable)(?:\s*=\s*|\s+|(?<=-e)))?(\.{1,2}(?:[/\\][^\[\]]*)?|[^\[\]:@\s]+[/\\][^\[\]:@]*)(\[[^\[\]]*\])?"
)
UNNAMED = re.compile(r"(?:(?:git|hg|svn|bzr)\+)?(?:https?|ssh|git)://\S+\Z")
EDITABLE = re.compile(r"(?:-e|--editable)[\s=]*((?:git|hg|svn|bzr)\+\S+)")
HARDWARE = ("nvidia-", "cuda-", "triton", "pytorch-triton", "torchtriton", "rocm")
"""What torch brings along in one of several forms; whether it works is for the proof to tell."""


@dataclass(frozen=True)
class Line:
    """One logical line; `where` is for people: `line 3`, or `other.txt line 3` in a file that was
    included."""

    where: str
    text: str


@dataclass(frozen=True)
class Requirements:
    """What a file asks for. `options` are in the form that the agent takes: `--name value`."""

    lines: tuple[Requirement, ...] = ()
    constraints: tuple[Requirement, ...] = ()
    options: tuple[str, ...] = ()
    # Addresses without a name: what they are is known once they are installed.
    unnamed: tuple[str, ...] = ()
    # Canonical name → ` --hash=…` for each file that it may come from.
    hashes: Mapping[str, str] = field(default_factory=dict)
    # The project's requires-python, and what its .python-version says.
    python: str = ""
    preferred: str = ""
    # The lines of conda's environment.yml, which conda reads there.
    conda: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(canonical(requirement.name) for requirement in self.lines))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_requirements(directory: Path, name: str) -> str:
    """The text of `name` below `directory`, files that it includes in their places: a requirements
    file, or one of the other forms that `remote.requirements` takes. Raises UsageError naming every
    wrong line.
    """
    problems: list[str] = []
    lines = list(dict.fromkeys(_read_form(directory, name, problems)))
    problems += _problems(lines)
    if problems:
        raise _wrong(problems, name)
    options = (REQUIRES_PYTHON, PREFERS_PYTHON)
    bounds = zip(options, python_bounds(directory), strict=True)
    about = [f"{option} {value}\n" for option, value in bounds if value]
    return "".join([*about, *(line.text + "\n" for line in lines)])


def _read_form(directory: Path, name: str, problems: list[str]) -> Iterable[Line]:
    plain, extras = split_extras(name)
    path = directory / plain
    if path.name == "pyproject.toml":
        found: Iterable[str] = package_lines(directory, path.parent, extras)
    elif path.name == "uv.lock":
        found = Lock(path).lines(extras)
    elif path.name in ("environment.yml", "environment.yaml"):
        yield from (Line(plain, f"{CONDA} {line}") for line in _text(path, plain).splitlines())
        return
    else:
        yield from _read(Source(path, name, directory), (), problems)
        return
    yield from _package(Source(path, plain, directory), found, plain, (path.resolve(),), problems)


@dataclass(frozen=True)
class Source:
    """A file of requirements, its name for people, and the project."""

    path: Path
    name: str
    project: Path


def _package(
    source: Source, lines: Iterable[str], where: str, within: tuple[Path, ...], problems: list[str]
) -> Iterable[Line]:
    """What a package's metadata asks for: lines, and files that it names in turn."""
    for text in lines:
        if text.startswith("-r "):
            yield from _read(
                Source(source.path.parent / text[3:].strip(), text[3:].strip(), source.project),
                within,
                problems,
            )
        else:
            yield Line(where, " ".join(text.split()))


def _read(source: Source, within: tuple[Path, ...], problems: list[str]) -> Iterable[Line]:
    """The lines of one file; includes that can't be had go to `problems`, a first file that can't
    be read is raised."""
    path, name = source.path, source.name
    try:
        text = _text(path, name)
    except UsageError as error:
        if not within:
            raise
        problems.append(error.message)
        return
    for line in split_lines(text, f"{name} " if within else ""):
        local = _local(line.text, path.parent, source.project)
        if local is not None:
            folder, extras = local
            try:
                found = list(package_lines(source.project, folder, extras))
            except UsageError as error:
                problems.append(f"{line.where}: {error.message}")
                continue
            own = Source(folder / "pyproject.toml", name, source.project)
            yield from _package(own, found, line.where, (*within, path.resolve()), problems)
            continue
        include = re.match(
            r"(-r|-c|--requirement|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(\S.*)", line.text
        )
        if not include:
            yield Line(line.where, re.sub(EDITABLE, _named, line.text))
            continue
        option, target = include.group(1), include.group(2).strip("\"'")
        place = path.parent / target
        chain = (*within, path.resolve())
        if "://" in target:
            problems.append(
                f"{line.where}: {redact(one_line(target, 80))}: an included file must be here, not"
                " at an address"
            )
        elif place.resolve() in chain:
            problems.append(f"{line.where}: {target} includes itself")
        else:
            for inner in _read(Source(place, target, source.project), chain, problems):
                is_limit = option in ("-c", "--constraint") and not inner.text.startswith("-")
                yield Line(inner.where, f"{CONSTRAINED} {inner.text}") if is_limit else inner


def _text(path: Path, name: str) -> str:
    """${NAME} is replaced where it is set here; the rest is pip's to replace there."""
    try:
        text = decode(path.read_bytes())
    except OSError as error:
        problem, remedy = error.strerror, "set remote.requirements to your file, or to none"
    except ValueError:
        problem, remedy = "its encoding is not known", "save it as UTF-8"
    else:
        return re.sub(r"\$\{([A-Z0-9_]+)\}", lambda m: os.environ.get(m[1]) or m[0], text)
    raise UsageError(f"{name} can't be read: {problem}", step="requirements", remedy=remedy)


def _named(found: re.Match[str]) -> str:
    """`-e git+…#egg=name` is installed like any other package."""
    egg = re.search(r"[#&]egg=([\w.-]+)", found[1])
    return f"{egg[1]} @ {found[1]}" if egg else found[1]


def _local(text: str, folder: Path, project: Path) -> tuple[Path, tuple[str, ...]] | None:
    """The folder and the extras of a line that names a package of the project: `-e .`,
    `./libs/x[train]`."""
    found = FOLDER.fullmatch(text)
    if not found or text.lower().endswith(ARCHIVES):
        return None
    place = folder / found[1].replace("\\", "/")
    if not place.is_dir():
        place = project / found[1].replace("\\", "/")  # pip takes it from where it is run
    return (place, split_extras(found[2] or "")[1]) if place.is_dir() else None


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
        plain = re.sub(
            r"(^|\s+)#.*$", "", joined + (" " if joined and is_comment else "") + raw
        ).strip()
        if plain:
            found.append(Line(f"{prefix}line {start}", plain))
        joined, start = "", 0
    return found


def requirements_hash(text: str) -> str:
    """Equal for texts that ask for the same: order, comments, blanks and passwords of addresses do
    not matter."""
    lines = set()
    for line in split_lines(text):
        parts = redact(line.text).split(";", 1)
        if not line.text.startswith("-"):
            parts[0] = re.sub(r"\s+", "", parts[0])
        lines.add(";".join(" ".join(part.split()) for part in parts))
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogatepass")).hexdigest()


def parse_requirements(text: str) -> Requirements:
    """Raises UsageError naming every wrong line."""
    from packaging.requirements import Requirement

    lines = split_lines(text)
    if problems := _problems(lines):
        raise _wrong(problems)
    options: list[str] = []
    asked: list[Requirement] = []
    limits: list[Requirement] = []
    unnamed: list[str] = []
    conda: list[str] = []
    pythons = {REQUIRES_PYTHON: "", PREFERS_PYTHON: ""}
    hashes: dict[str, str] = {}
    for line in lines:
        option, _, value = line.text.partition(" ")
        if option in pythons:
            pythons[option] = value
        elif option == CONDA:
            conda.append(value)
        elif option == CONSTRAINED:
            limits.append(Requirement(value))
        elif option == LOCAL:
            continue
        elif line.text.startswith("-"):
            options += parse_options(line.text)
        elif UNNAMED.match(line.text):
            unnamed.append(line.text)
        else:
            plain, kept = split_hashes(line.text)
            asked.append(Requirement(plain))
            if kept:
                hashes[canonical(asked[-1].name)] = kept
    once = dict.fromkeys
    return Requirements(
        tuple(once(asked)),
        tuple(once(limits)),
        tuple(once(options)),
        tuple(once(unnamed)),
        hashes,
        pythons[REQUIRES_PYTHON],
        pythons[PREFERS_PYTHON],
        tuple(conda),
    )


def split_hashes(text: str) -> tuple[str, str]:
    """A line without its --hash options, and these."""
    found = re.findall(r"\s--hash[= ]\s*(\S+)", text)
    return re.sub(r"\s--hash[= ]\s*\S+", "", text).strip(), "".join(
        f" --hash={one}" for one in found
    )


def parse_options(text: str) -> list[str]:
    """`-i URL --pre` → ["--index-url URL", "--pre"]. Raises ValueError, with the reason, for what
    we don't take."""
    words = [
        word
        for part in text.split()
        for word in (part.split("=", 1) if part.startswith("--") else [part])
    ]
    found: list[str] = []
    while words:
        name = words.pop(0)
        if name in FLAGS:
            found.append(name)
        elif name in ("-e", "--editable"):
            raise ValueError(
                "no folder of a package is there; one outside the project does not go to the server"
            )
        elif name not in WITH_VALUE:
            raise ValueError(f"the option {redact(one_line(name, 40))} is not supported here")
        elif not words or words[0].startswith("-"):
            raise ValueError(f"{name} lacks its value")
        else:
            value = words.pop(0)
            if (
                WITH_VALUE[name] == "--find-links"
                and "://" not in value
                and not value.startswith("/")
            ):
                raise ValueError(
                    f"{value} is a folder here; give an address, or an absolute path on the server"
                )
            found.append(f"{WITH_VALUE[name]} {value}")
    return found


def _problems(lines: Sequence[Line]) -> list[str]:
    """What is wrong, line by line. A freeze of conda's is wrong in most, and that is said once."""
    frozen = [line for line in lines if re.search(r"\w\s*@\s*file:", line.text)]
    found = [
        f"{line.where}: {problem}"
        for line in lines
        if line not in frozen and (problem := _problem(line.text))
    ]
    if frozen:
        count = f" and {len(frozen) - 1} more lines name files" if frozen[1:] else " names a file"
        text = redact(one_line(frozen[0].text, 60))
        found.append(
            f"{frozen[0].where}: {text}{count} of the computer that wrote them, as pip freeze does"
            " in conda: write the file with `pip list --format=freeze`"
        )
    return found


def _problem(text: str) -> str | None:
    """What is wrong with a logical line; None if nothing is."""
    option, _, value = text.partition(" ")
    if option in OURS:
        return _problem(value) if option == CONSTRAINED else None
    if UNNAMED.match(text):
        return None
    plain = split_hashes(text)[0]
    if plain.startswith("-"):
        try:
            parse_options(plain)
        except ValueError as error:
            return str(error)
        return None
    shown = redact(one_line(plain, 100))
    first = plain.split(";")[0].split(" ")[0]
    is_file = first.lower().endswith(ARCHIVES) and "://" not in plain
    if re.search(r"\s--?\w", plain):
        return f"{shown}: options beside a requirement are not supported"
    if PLAIN.match(plain) and not is_file:
        return None
    if is_file or re.match(r"(\.{0,2}[/\\]|~|file:|[A-Za-z]:[/\\])", first):
        return f"{shown}: a path of this computer can't be installed there"
    if "，" in plain or "；" in plain:
        return f"{shown}: a full-width comma or semicolon (，；), where pip takes , and ;"
    if conda := re.match(r"([\w.-]+)=([\w.*]+)(?:=\w+)?$", plain):
        return f"{shown}: conda's form; pip's is {conda[1]}=={conda[2]}"
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        Requirement(plain)
    except InvalidRequirement as error:
        return f"{shown}: {one_line(redact(str(error).splitlines()[0]), 120)}"
    return None


def _wrong(problems: Sequence[str], name: str = "the requirements") -> UsageError:
    count = "a wrong line" if len(problems) == 1 else f"{len(problems)} wrong lines"
    return UsageError(
        f"{name}: {count}: {'; '.join(problems)}",
        step="requirements",
        remedy="correct them; nothing was sent",
    )


def names_with_extras(requirements: Requirements) -> list[str]:
    """`name` or `name[extra,…]`: what the agent follows to all that these packages need."""
    found: dict[str, set[str]] = {}
    for requirement in requirements.lines:
        found.setdefault(canonical(requirement.name), set()).update(requirement.extras)
    return [
        name + (f"[{','.join(sorted(extras))}]" if extras else "") for name, extras in found.items()
    ]


def applicable(
    requirements: Iterable[Requirement], markers: Mapping[str, str]
) -> list[Requirement]:
    """Those whose markers hold on an interpreter that described itself by `markers`."""
    return [requirement for requirement in requirements if _holds(requirement, markers, ())]


def _holds(requirement: Requirement, markers: Mapping[str, str], extras: Iterable[str]) -> bool:
    from packaging.markers import UndefinedComparison, UndefinedEnvironmentName

    if requirement.marker is None:
        return True
    try:
        return any(
            requirement.marker.evaluate({**markers, "extra": extra}) for extra in (*extras, "")
        )
    except (UndefinedComparison, UndefinedEnvironmentName, ValueError):
        return True


@dataclass
class Installed:
    """What an interpreter told of its packages: canonical name → version, → what it requires, →
    address it came from."""

    packages: Mapping[str, str]
    requires: Mapping[str, Sequence[str]]
    urls: Mapping[str, str]
    markers: Mapping[str, str]
    missing: dict[str, list[str]] = field(default_factory=dict)

    def find_missing(self, requirements: Requirements) -> dict[str, list[str]]:
        """Canonical name → lines to install, of what is lacking or of the wrong version, at any
        depth."""
        from packaging.requirements import InvalidRequirement, Requirement

        self.missing = {}
        limits: dict[str, list[Requirement]] = {}
        for limit in applicable(requirements.constraints, self.markers):
            limits.setdefault(canonical(limit.name), []).append(limit)
        pending = applicable(requirements.lines, self.markers)
        seen: set[str] = set()
        while pending:
            requirement = copy(pending.pop(0))
            name = canonical(requirement.name)
            requirement.marker = None
            if str(requirement) in seen:
                continue
            seen.add(str(requirement))
            if not self.satisfies(requirement) or not all(
                map(self.satisfies, limits.get(name, ()))
            ):
                self.missing.setdefault(name, []).append(str(requirement))
                continue
            for text in self.requires.get(name, ()):
                try:
                    needed = Requirement(text)
                except InvalidRequirement:
                    continue
                brought = name == "torch" and canonical(needed.name).startswith(HARDWARE)
                if not brought and _holds(needed, self.markers, requirement.extras):
                    pending.append(needed)
        return self.missing

    def satisfies(self, requirement: Requirement) -> bool:
        from packaging.version import InvalidVersion

        name = canonical(requirement.name)
        version = self.packages.get(name)
        if version is None:
            return False
        if requirement.url is not None:
            return _bare(self.urls.get(name, "")) == _bare(requirement.url)
        try:
            return requirement.specifier.contains(version, prereleases=True)
        except InvalidVersion:
            return False


def _bare(url: str) -> str:
    """Without a password, a branch's name for git, and a fragment."""
    return re.sub(r"(://)[^/\s@]*@", r"\1", url).split("#")[0].removeprefix("git+").rstrip("/")
