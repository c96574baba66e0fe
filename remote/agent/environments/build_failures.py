"""Reads why an installation failed out of pip's or uv's words. Pure."""

import re
from typing import Any, List, NamedTuple, Optional, Pattern


class Failure(NamedTuple):
    message: str
    remedy: str


class Place(NamedTuple):
    """Where it failed. `glibc` and `python` are versions; None where unknown."""

    log: str
    mount: str = ""
    free_mib: Optional[int] = None
    need_mib: Optional[int] = None
    python: Optional[str] = None
    glibc: Optional[str] = None


MIRROR_REMEDY = (
    "set a mirror that this server reaches: `pip config set global.index-url https://…/simple`"
    " there (in China e.g. https://mirrors.aliyun.com/pypi/simple), or set remote.python to an"
    " interpreter that has the packages"
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
    r"Failed building wheel for ([\w.-]+)|Failed to build `?([\w.-]+)|Could not build wheels for"
    r" ([\w.-]+)"
    r"|Failed to build installable wheels for some pyproject.toml based projects \(?([\w.-]+)"
)
NO_COMPILER = re.compile(
    r"(?:unable to execute '?|No such file or directory: '|command"
    r" ')([\w-]*(?:gcc|g\+\+|cc|nvcc|cmake|rustc|cargo))\b"
)


def classify(text: str, place: Place, exit_code: Optional[int] = None) -> Failure:
    """One line of cause and one of remedy; the remedy always names the log. `text` is the log's
    end."""
    for look in (
        _disk_full,
        _killed,
        _too_old,
        _unreachable,
        _conflict,
        _not_found,
        _not_compiled,
        _forbidden,
    ):
        failure = look(text, place, exit_code)
        if failure is not None:
            return _with_log(failure, place)
    return _with_log(Failure(f"the installation failed: {last_error(text, exit_code)}", ""), place)


def last_error(text: str, exit_code: Optional[int] = None) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [
        line
        for line in lines
        if re.match(r"(ERROR|error|fatal|×)[: ]|\w*(Error|Exception)\b", line)
    ]
    last = (errors or lines)[-1:] or [f"exit code {exit_code}"]
    return re.sub(r"^(ERROR|error): ", "", last[0])[:300]


def _with_log(failure: Failure, place: Place) -> Failure:
    log = f"the whole output is in {place.log} there"
    return Failure(failure.message, f"{failure.remedy}; {log}" if failure.remedy else log)


def _disk_full(text: str, place: Place, exit_code: Any) -> Optional[Failure]:
    if not DISK_FULL.search(text):
        return None
    need = f", about {_gib(place.need_mib)} are needed" if place.need_mib else ""
    free = f" ({_gib(place.free_mib)} free{need})" if place.free_mib is not None else ""
    return Failure(
        f"the disk is full at {place.mount or 'the project'}{free}",
        "free some space (pip cache purge), or set remote.root to a larger disk",
    )


def _killed(text: str, place: Place, exit_code: Any) -> Optional[Failure]:
    if exit_code != -9:
        return None
    return Failure(
        "the installer was killed (SIGKILL), mostly for lack of memory",
        "deploy again when memory is free",
    )


def _too_old(text: str, place: Place, exit_code: Any) -> Optional[Failure]:
    """Every version was passed over because of the python, or because its wheels need a newer
    glibc."""
    missing = _missing(text)
    wants = re.findall(r"Requires-Python\s*>=\s*([\d.]+)", text) or re.findall(
        r"requires a different Python: \S+ not in '>=([\d.]+)", text
    )
    wants = wants or re.findall(r"does not satisfy Python>=([\d.]+)", text)
    if wants and (
        missing or "requires a different Python" in text or "does not satisfy Python" in text
    ):
        lowest = min(wants, key=_version)
        if place.python and _version(place.python) < _version(lowest):
            what = f"{missing[-1]} needs" if missing else "a package needs"
            return Failure(
                f"{what} python ≥ {lowest}, this is {place.python}",
                "set remote.python to a newer interpreter there",
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


def _unreachable(text: str, place: Place, exit_code: Any) -> Optional[Failure]:
    found = UNREACHABLE.search(text)
    if not found or re.search(r"from versions: (?!none)\S", text):
        return None
    hosts = [first or second for first, second in HOST.findall(text[max(0, found.start() - 300) :])]
    host = f" ({hosts[0]})" if hosts else ""
    return Failure(
        f"the package index{host} can't be reached from the server: {found.group(0)}", MIRROR_REMEDY
    )


def _conflict(text: str, place: Place, exit_code: Any) -> Optional[Failure]:
    found = re.search(
        r"Cannot install (.{1,200}?) because these package versions have conflicting dependencies",
        text,
    )
    if found:
        return Failure(
            f"the requirements contradict each other: {found.group(1)}",
            "loosen one of them in the requirements",
        )
    return None


def _not_found(text: str, place: Place, exit_code: Any) -> Optional[Failure]:
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
    found = re.search(r"Invalid requirement:?[ :]+(.{1,120})", text)
    return (
        Failure(f"not a requirement: {found.group(1).strip()}", "correct it in the requirements")
        if found
        else None
    )


def _not_compiled(text: str, place: Place, exit_code: Any) -> Optional[Failure]:
    names = _groups(COMPILE, text)
    if not names and "subprocess-exited-with-error" not in text:
        return None
    what = (
        f"{names[-1]} has no ready wheel for this python and could not be compiled"
        if names
        else "a package could not be built"
    )
    tools = _groups(NO_COMPILER, text)
    if tools:
        return Failure(
            f"{what}: {tools[0]} is missing or failed",
            "ask for `apt install build-essential`, or use a version with wheels",
        )
    return Failure(
        what, "use a version that has wheels for this python, or set remote.python to another one"
    )


def _forbidden(text: str, place: Place, exit_code: Any) -> Optional[Failure]:
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
