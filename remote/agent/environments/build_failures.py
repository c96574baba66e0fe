"""Reads why an installation failed out of pip's or uv's words. Pure."""

import itertools
import re
from typing import List, NamedTuple, Optional, Pattern, Tuple

from remote.agent.machine.programs import ENDED
from remote.agent.shared.build_plan import BuildPlan
from remote.agent.shared.names import canonical


class Failure(NamedTuple):
    message: str
    remedy: str


class Place(NamedTuple):
    """Where it failed, and what was to be made. `glibc`: its version, None where unknown."""

    plan: BuildPlan
    mount: str = ""
    free_mib: Optional[int] = None
    glibc: Optional[str] = None
    # A file of constraints that pip there is set to.
    constraint: str = ""
    # The installer's.
    exit_code: Optional[int] = None


MIRROR_REMEDY = (
    "set a mirror that this server reaches: `pip config set global.index-url https://…/simple`"
    " there (in China e.g. https://mirrors.aliyun.com/pypi/simple), or set remote.python to an"
    " interpreter that has the packages"
)
OWN_INDEX_REMEDY = "the requirements name it: correct it there, or let the server reach it"
CONDA_REMEDY = (
    "set channels that this server reaches in ~/.condarc there, or name a requirements file in"
    " remote.requirements"
)
TORCH_REMEDY = (
    "set remote.torch_index to a mirror of torch's builds that the server reaches, e.g."
    " https://mirrors.nju.edu.cn/pytorch/whl, or to a page of wheels: -f"
    " https://mirrors.aliyun.com/pytorch-wheels/{build}"
)
DISK_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|os error 28\b|os error 122\b", re.I
)
UNREACHABLE = re.compile(
    r"Failed to establish a new"
    r" connection|NewConnectionError|ConnectTimeoutError|ReadTimeoutError|Name or service not known"
    r"|Temporary failure in name resolution|getaddrinfo failed|Connection refused|Network is"
    r" unreachable|No route to host"
    r"|ProxyError|Max retries exceeded|CERTIFICATE_VERIFY_FAILED|SSLError|error sending request|dns"
    r" error|tcp connect error"
    r"|client error \(Connect\)|operation timed out|Connection reset by"
    r" peer|RemoteDisconnected|IncompleteRead|403 Forbidden"
    r"|401 Unauthorized|50[234] (Bad Gateway|Server Error|Service Unavailable|Gateway)",
    re.I,
)
HOST = re.compile(r"host='([^']{1,100})'|https?://(?:[^/\s@]*@)?([A-Za-z0-9.-]{1,100})")
COMPILE = re.compile(
    r"Failed building wheel for ([\w.-]+)|Failed to build [`']?(?!installable wheels)([\w.-]+)"
    r"|Could not build wheels for ([\w.-]+)|some pyproject.toml based projects\s+[(╰─> ]*([\w.-]+)"
    r"|error while generating package metadata\.\s*╰─> (?!See )([\w.-]+)"
)
ERROR = re.compile(r"\s*((ERROR|error|fatal|×)[: ]|\w*(Error|Exception)\b)")
MISSING_MODULE = re.compile(r"No module named '([\w.]+)'")
BOUNDS = re.compile(
    r"Requires-Python ([^;\n]+)|requires a different Python: \S+ not in '([^']+)'"
    r"|does not satisfy Python([\d.,<>=]+)"
)
CONFLICT = re.compile(
    r"Cannot install (.{1,200}?) because these package versions have conflicting dependencies"
)
NO_COMPILER = re.compile(
    r"(?:unable to execute '?|No such file or directory: '|command"
    r" ')([\w-]*(?:gcc|g\+\+|cc|nvcc|cmake|rustc|cargo))\b"
)


def classify(text: str, place: Place) -> Failure:
    """One line of cause and one of remedy, which may be empty. `text` is the log's end."""
    for look in (
        _disk_full,
        _killed,
        _wrong_hash,
        _too_old,
        _git,
        _wrong_name,
        _unreachable,
        _conflict,
        _not_found,
        _not_compiled,
        _forbidden,
    ):
        failure = look(text, place)
        if failure is not None:
            return failure
    return Failure(f"the installation failed: {last_error(text, place.exit_code)}", "")


def missing_module(text: str) -> Optional[Tuple[str, str]]:
    """The package that could not be built for lack of a module, in canonical form, and the
    module."""
    module = MISSING_MODULE.search(text)
    if module is None:
        return None
    # Others may have failed, too: pip names each below its words, uv above them.
    below = _groups(COMPILE, text[module.end() :])
    name = below[0] if below else _unbuilt(text)
    return (canonical(name), module.group(1)) if name else None


def depends_on_python(text: str) -> bool:
    """Another python may have what this one has not: ready wheels, or a version that takes it."""
    return bool(
        _unbuilt(text)
        or re.search(r"requires? a different [Pp]ython|Requires-Python|not satisfy Python", text)
        or re.search(r"has no wheels? with a matching|only versions .{1,40} are supported", text)
    )


def _unbuilt(text: str) -> Optional[str]:
    """The package that could not be built; older ones of pip do not name it."""
    names = _groups(COMPILE, text)
    failed = re.search(r"subprocess-exited-with-error|BackendUnavailable", text)
    if names or not failed:
        return names[-1] if names else None
    before = text[: failed.start()]
    collected = re.findall(r"^\s*Collecting ([\w.-]+)", before, re.MULTILINE)
    return collected[-1] if collected else None


def last_error(text: str, exit_code: Optional[int]) -> str:
    """The last line that looks like an error, with what stands below it, indented."""
    lines = [line for line in text.splitlines() if line.strip()] or [f"exit code {exit_code}"]
    looks = [number for number, line in enumerate(lines) if ERROR.match(line)]
    last = max(looks, default=len(lines) - 1)
    below = itertools.takewhile(lambda line: line[0].isspace(), lines[last + 1 :])
    told = " ".join(" ".join([lines[last], *below]).split())
    return re.sub(r"^(ERROR|error): ", "", told)[:300]


def _disk_full(text: str, place: Place) -> Optional[Failure]:
    found = DISK_FULL.search(text)
    if not found:
        return None
    where = place.mount or "the project"
    if re.search("quota|122", found[0], re.I):
        # Of others' room, which a quota leaves free, nothing is said.
        return Failure(
            f"your quota on the disk at {where} is used up",
            "quota -s there tells it; free some space of yours, or set remote.root to another disk",
        )
    if place.free_mib is not None and place.free_mib > max(place.plan.need_mib, 2048):
        return Failure(
            f"a disk is full there, but not that of the project ({_gib(place.free_mib)} free at"
            f" {where}): a cache lies on another, mostly in the home",
            "free some space there: pip cache purge, or conda clean --all",
        )
    need = f", about {_gib(place.plan.need_mib)} are needed" if place.plan.need_mib else ""
    free = f" ({_gib(place.free_mib)} free{need})" if place.free_mib is not None else ""
    return Failure(
        f"the disk is full at {where}{free}",
        "free some space (pip cache purge), or set remote.root to a larger disk",
    )


def _killed(text: str, place: Place) -> Optional[Failure]:
    if place.exit_code == ENDED:
        return Failure("the installer was ended: it had said nothing for hours", MIRROR_REMEDY)
    if place.exit_code != -9:
        return None
    return Failure(
        "the installer was killed (SIGKILL), mostly for lack of memory",
        "deploy again when memory is free",
    )


def _wrong_hash(text: str, place: Place) -> Optional[Failure]:
    found = re.search(r"DO NOT MATCH THE HASHES.*\n\s+([^\s@]+)|Hash mismatch for `([^`]+)`", text)
    if not found:
        return None
    return Failure(
        f"{found[1] or found[2]} is not the file whose hash the requirements have",
        "correct its hash, or find out who has changed that file",
    )


def _too_old(text: str, place: Place) -> Optional[Failure]:
    """Every version was passed over because of the python, or because its wheels need a newer
    glibc."""
    missing = _missing(text)
    named = re.findall(r"Package '([\w.-]+)' requires a different Python", text) or missing
    what, python = (named or ["a package"])[-1], _version(place.plan.version or "0")
    bounds = _groups(BOUNDS, text) if named or "does not satisfy Python" in text else []
    lowest = min(re.findall(r">=\s*([\d.]+)", " ".join(bounds)), key=_version, default="0")
    highest = re.findall(r"<=?\s*([\d.]+)", " ".join(bounds[-1:])) or ["99"]
    if place.plan.version and python < _version(lowest):
        return Failure(
            f"{what} needs python ≥ {lowest}, this is {place.plan.version}",
            "set remote.python to a newer interpreter there",
        )
    if python >= _version(highest[-1]):
        return Failure(
            f"{what} takes python < {highest[-1]}, this is {place.plan.version}",
            f"set remote.python to {place.plan.older or 'an older interpreter there'}",
        )
    if (
        missing
        and place.glibc
        and re.match(r"torch|nvidia|triton", missing[-1])
        and _version(place.glibc) < [2, 28]
    ):
        return Failure(
            f"{missing[-1]} has no wheel for this server: torch's need glibc ≥ 2.28, this is"
            f" {place.glibc}",
            "set remote.python to a conda python with torch, or use an older torch",
        )
    return None


def _git(text: str, place: Place) -> Optional[Failure]:
    """pip or uv could not fetch a repository; git's own words say why."""
    if re.search(r"Cannot find command 'git'|Git executable not found", text):
        return Failure(
            "the requirements name a repository, and git is not on the server",
            "ask for `apt install git`, or name the address of a wheel",
        )
    if not re.search(r"× git \w.* did not run successfully|Git operation failed", text):
        return None
    said = re.findall(r"^\s*(?:fatal: |error: (?=pathspec|cannot run))(.+)", text, re.MULTILINE)
    said = [line for line in said if line != "unable to fork"] or said
    return Failure(
        f"git there could not fetch a repository: {(said or ['it does not say why'])[-1][:200]}",
        "correct its address or branch, or let the server reach it",
    )


def _wrong_name(text: str, place: Place) -> Optional[Failure]:
    found = re.search(
        r"inconsistent name: expected '(.+?)', but metadata has '(.+?)'"
        r"|metadata name `(.+?)` does not match given name `(.+?)`",
        text,
    )
    if not found:
        return None
    wanted, own = found[1] or found[4], found[2] or found[3]
    return Failure(
        f"what the requirements call {wanted} calls itself {own}",
        f"write {own} for {wanted} in the requirements",
    )


def _unreachable(text: str, place: Place) -> Optional[Failure]:
    found = UNREACHABLE.search(text)
    if not found or re.search(r"from versions: (?!none)\S", text):
        return None
    hosts = [first or second for first, second in HOST.findall(text[max(0, found.start() - 300) :])]
    of_torch = bool(hosts) and f"//{hosts[0]}" in place.plan.torch.index_url
    of_conda = "CondaHTTPError" in text or "/repodata." in text
    what = "torch's index" if of_torch else "conda's channel" if of_conda else "the package index"
    host = f" ({hosts[0]})" if hosts else ""
    if of_torch or of_conda:
        remedy = TORCH_REMEDY if of_torch else CONDA_REMEDY
    else:
        named = bool(hosts) and hosts[0] in " ".join(place.plan.options)
        remedy = OWN_INDEX_REMEDY if named else MIRROR_REMEDY
    return Failure(f"{what}{host} can't be reached from the server: {found.group(0)}", remedy)


def contradicts(text: str) -> bool:
    return bool(CONFLICT.search(text))


def _conflict(text: str, place: Place) -> Optional[Failure]:
    found = CONFLICT.search(text)
    if not found:
        return None
    because = re.search(r"The conflict is caused by:\n((?: {4}.+\n?)+)", text)
    sides = [line.strip() for line in because[1].splitlines()[:4]] if because else []
    what = "; ".join(sides).replace("The user requested ", "") or found[1]
    if place.constraint and "(constraint)" in text:
        return Failure(
            f"{what}: the requirements contradict {place.constraint} on the server, to which pip"
            " is set there",
            f"loosen them, or change {place.constraint}",
        )
    return Failure(
        f"the requirements contradict each other: {what}", "loosen one of them in the requirements"
    )


def _not_found(text: str, place: Place) -> Optional[Failure]:
    missing = _missing(text)
    if missing:
        offered = re.search(r"from versions: ([^)]{1,400})\)", text)
        versions = [v for v in (offered.group(1).split(", ") if offered else []) if v != "none"]
        newest = f"; the newest offered is {versions[-1]}" if versions else "; no index offers it"
        return Failure(
            f"the requirement {missing[-1]} can't be satisfied{newest}",
            "correct it, or give the index that has it",
        )
    found = re.search(r"No solution found when resolving dependencies:\s*(.{1,600})", text, re.S)
    if found:
        because = re.sub(r"\s+", " ", found.group(1)).replace("╰─▶ ", "").strip()
        return Failure(
            f"the requirements can't be satisfied: {because[:300]}",
            "correct them, or give the index that has it",
        )
    found = re.search(r"Invalid requirement:?[ :]+(.{1,200}?)(?: \(from line|$)", text, re.M)
    return (
        Failure(f"not a requirement: {found.group(1).strip()}", "correct it in the requirements")
        if found
        else None
    )


def _not_compiled(text: str, place: Place) -> Optional[Failure]:
    name = _unbuilt(text)
    if name is None and "subprocess-exited-with-error" not in text:
        return None
    needing, tools = missing_module(text), _groups(NO_COMPILER, text)
    if needing:
        return Failure(
            f"{needing[0]} could not be built: its build needs the module {needing[1]}",
            f"name {needing[0]} and what has {needing[1]} in the requirements: one is then built"
            " after the other",
        )
    what = (
        f"{name} has no ready wheel for this python and could not be built"
        if name
        else "a package could not be built"
    )
    if tools:
        return Failure(
            f"{what}: {tools[0]} is missing or failed",
            "ask for `apt install build-essential`, or use a version with wheels",
        )
    said, other = _backend_said(text), place.plan.older or "another one"
    return Failure(
        f"{what}: {said}" if said else what,
        f"use a version that has wheels for this python, or set remote.python to {other}",
    )


def _backend_said(text: str) -> str:
    """Why what was to build the package gave up: its last error, else the words it began with."""
    block = re.compile(
        r"of output\]\n(.*?)\n *\[end of output\]|\[stderr\]\n(.*?)(?=\nhint:|\Z)", re.S
    )
    lines = [line.strip() for line in "".join(_groups(block, text)[-1:]).splitlines()]
    errors = [line for line in lines if ERROR.match(line)]
    return "".join(errors[-1:] or lines[:1])[:300]


def _forbidden(text: str, place: Place) -> Optional[Failure]:
    found = re.search(r"Permission denied[:,]? '?([^'\n]{1,200})", text)
    return Failure(f"permission denied: {found.group(1)}", "check who owns it") if found else None


def _missing(text: str) -> List[str]:
    return [
        name.strip()
        for name in re.findall(r"No matching distribution found for ([^\n(]{1,200})", text)
    ]


def _groups(pattern: "Pattern[str]", text: str) -> List[str]:
    return [
        next(group for group in found.groups() if group)
        for found in pattern.finditer(text)
        if any(found.groups())
    ]


def _version(text: str) -> List[int]:
    return [int(part) for part in re.findall(r"\d+", text)[:3]]


def _gib(mib: Optional[int]) -> str:
    return "–" if mib is None else f"{mib / 1024:.1f} GiB"
