"""The server's Python interpreters: found by name and place, described once, remembered by path,
time and size."""

import hashlib
import json
import os
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from remote.agent.environments.python_places import ask_plainly, candidates, plain_environment
from remote.agent.machine.account import user_name
from remote.agent.machine.programs import NO_ANSWER
from remote.agent.root.paths import Layout, read_json, write_json

Interpreter = Dict[str, Any]
DESCRIBE_TIMEOUT_S = 15.0
INSPECT_TIMEOUT_S = 60.0
MAX_WORKERS = 8
CACHE_VERSION = 1

NOTHING: Dict[str, Any] = {
    name: {} for name in ("packages", "requires", "urls", "torch", "commits")
}
"""Of an interpreter that nobody looked into."""

_seen: Dict[str, Interpreter] = {}
"""What this process has described; written to the root by `remember`, which may not exist when
facts are asked."""

# Runs on any python 3; sys.path[0] is the working directory there, and not what a script would see.
DESCRIBE = r"""
import json, os, platform, sys
sys.path = [p for p in sys.path if p not in ("", os.getcwd())]
d = {"executable": sys.executable, "version": "%d.%d.%d" % sys.version_info[:3],
     "prefix": sys.prefix, "base_prefix": getattr(sys, "base_prefix", sys.prefix)}
def has(name):
    try:
        import importlib.util
        return importlib.util.find_spec(name) is not None
    except Exception:
        return False
d["has_venv"] = has("venv") and has("ensurepip")
d["has_pip"] = has("pip")
d["has_virtualenv"] = has("virtualenv")
d["is_conda"] = os.path.isdir(os.path.join(d["base_prefix"], "conda-meta"))
d["is_venv"] = d["prefix"] != d["base_prefix"]
names = ("site-packages", "dist-packages")
d["sites"] = [p for p in sys.path if os.path.basename(p) in names and os.path.isdir(p)]
i = sys.implementation
v = "%d.%d.%d" % i.version[:3]
v += "" if i.version[3] == "final" else i.version[3][0] + str(i.version[4])
d["markers"] = {"implementation_name": i.name, "implementation_version": v, "os_name": os.name,
    "platform_machine": platform.machine(), "platform_release": platform.release(),
    "platform_python_implementation": platform.python_implementation(),
    "platform_system": platform.system(), "platform_version": platform.version(),
    "python_full_version": platform.python_version(), "sys_platform": sys.platform,
    "python_version": ".".join(platform.python_version_tuple()[:2])}
print("\x1e" + json.dumps(d))
"""

INSPECT = r"""
import json, os, re, sys
sys.path = [p for p in sys.path if p not in ("", os.getcwd())]
import importlib.metadata as metadata
def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()
def split(text):
    m = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?", text)
    if not m:
        return None, set()
    return canonical(m.group(1)), {e.strip() for e in (m.group(2) or "").split(",") if e.strip()}
packages, found, requires, urls, commits = {}, {}, {}, {}, {}
for d in metadata.distributions():
    try:
        name, version = d.metadata["Name"], d.version
    except Exception:
        continue
    if name and version and canonical(name) not in packages:
        packages[canonical(name)], found[canonical(name)] = version, d
# Everything that the named ones need, as far as it is installed. Lines for extras that nobody
# asks for are left out.
pending, extras = [split(text) for text in sys.argv[1:]], {}
while pending:
    name, asked = pending.pop()
    if name not in found or (name in extras and asked <= extras[name]):
        continue
    extras[name] = extras.get(name, set()) | asked
    try:
        lines = list(found[name].requires or [])
        origin = json.loads(found[name].read_text("direct_url.json") or "{}")
        if origin:
            version = origin.get("vcs_info") or {}
            asked_for = version.get("requested_revision")
            urls[name] = origin["url"] + ("@" + asked_for if asked_for else "")
            if version:
                commits[name] = [asked_for or "HEAD", version["commit_id"]]
    except Exception:
        lines = []
    requires[name] = []
    for line in lines:
        marker = line.partition(";")[2]
        wanted = [quote + e + quote for e in extras[name] for quote in ("'", '"')]
        if "extra" not in marker or any(e in marker for e in wanted):
            requires[name].append(line)
            pending.append(split(line))
torch = {}
for p in sys.path:
    f = os.path.join(p, "torch", "version.py")
    if os.path.isfile(f):
        text = open(f, encoding="utf-8", errors="replace").read(20000)
        for key, names in (("version", "__version__"), ("cuda", "cuda"), ("hip", "hip")):
            m = re.search(r"^%s\b[^=\n]*=\s*(?:'([^']*)'|\"([^\"]*)\"|None)" % names, text, re.M)
            torch[key] = (m.group(1) or m.group(2)) if m else None
        break
answer = {"packages": packages, "requires": requires, "urls": urls, "torch": torch,
    "commits": commits}
print("\x1e" + json.dumps(answer))
"""


def list_interpreters(
    layout: Layout, configured: str, path: Optional[str] = None
) -> List[Interpreter]:
    """Every interpreter once, the configured one first, with `problem` where it can't be used.

    Starts those alone that were not seen before: a second call on the same server starts none.
    """
    known = {**_read_cache(layout), **_seen}
    wanted = os.path.expanduser(configured.strip())
    found: List[Interpreter] = []
    paths = candidates(wanted, path)
    todo = [path for path in paths if not _current(known.get(path), path)]
    for path, described in zip(todo, in_threads(describe, todo)):
        known[path] = described
        if not described.get("passing"):
            _seen[path] = described
    prefixes = set()
    for path in paths:
        entry = dict(known[path], configured=path == wanted and bool(wanted))
        # One interpreter has many names; two venvs share a base, but never a prefix.
        identity = entry.get("prefix") or path
        if (entry.get("problem") and not entry["configured"]) or identity in prefixes:
            continue
        prefixes.add(identity)
        found.append(entry)
    return found


def remember(layout: Layout) -> None:
    """Keep what was described in the root, so that the next login needs to start no interpreter."""
    if _seen and os.path.isdir(layout.agents):
        kept = {path: entry for path, entry in _read_cache(layout).items() if os.path.exists(path)}
        kept.update(_seen)
        write_json(
            _cache_path(layout),
            {"version": CACHE_VERSION, "host": os.uname().nodename, "interpreters": kept},
        )


def describe(path: str) -> Interpreter:
    """What the interpreter says of itself, with the signature by which it is known again; `problem`
    where it says nothing."""
    entry: Interpreter = {"path": path, "stat": _stat(path)}
    if not os.path.isabs(path):
        return dict(
            entry,
            problem=f"remote.python must be an absolute path or begin with ~, not {path!r:.120}",
        )
    if entry["stat"] is None:
        return dict(entry, problem=why_missing(path))
    answer, problem = run_python(path, DESCRIBE, DESCRIBE_TIMEOUT_S)
    if answer is None:
        # A slow answer says nothing about the next time, so it isn't remembered.
        return dict(
            entry,
            problem=f"it does not run as python 3: {problem}",
            passing=problem.startswith(NO_ANSWER),
        )
    entry.update(answer)
    # pyenv's shims, `conda run` wrappers and the like: what they lead to is the interpreter.
    executable = answer.get("executable")
    if executable and _stat(executable) is not None and not _names_same(path, executable):
        entry["path"] = executable
    entry["real_stat"] = _stat(entry["path"])
    entry["version_info"] = [int(part) for part in entry["version"].split(".")]
    if entry["version_info"] < [3, 8]:
        entry["problem"] = f"it is python {entry['version']}; 3.8 is the oldest that works"
    return entry


def inspect_packages(python: str, detail: Sequence[str] = ()) -> Dict[str, Any]:
    """packages: canonical name → version; torch: version, cuda, hip, read without importing it.

    requires: what the packages named in `detail` (`name` or `name[extra,…]`) ask for, and what
    these ask for, and so on; urls: where those came from that were installed from an address, with
    the branch or tag; commits: [branch or tag, commit]. `problem` where it could not be told.
    """
    answer, problem = run_python(python, INSPECT, INSPECT_TIMEOUT_S, list(detail))
    return dict(NOTHING, problem=problem) if answer is None else dict(NOTHING, **answer)


def run_python(
    python: str, script: str, timeout_s: float, arguments: Iterable[str] = ()
) -> Tuple[Optional[Dict[str, Any]], str]:
    """The JSON object that a script printed after a record mark, or None and why not."""
    said = ask_plainly([python, "-c", script, *arguments], timeout_s)
    try:
        value = json.loads(said.out.rpartition("\x1e")[2])
    except (ValueError, RecursionError):
        value = None
    if said.code != 0 or not isinstance(value, dict):
        return None, said.last_line[:200]
    return value, ""


def build_environment(temporary: str) -> Dict[str, str]:
    """What an installer finds around it."""
    values = dict(plain_environment(), TMPDIR=temporary, PYTHONUNBUFFERED="1")
    values.pop("VIRTUAL_ENV", None)
    return values


def signature(python: str, sites: Sequence[str]) -> Dict[str, Any]:
    """By which an environment is known to be unchanged, without starting it."""
    return {"python": _stat(python), "sites": {site: _site_signature(site) for site in sites}}


def same_signature(old: Any, python: str) -> Optional[str]:
    """None if nothing changed, else what did: `python` is gone or replaced, or the packages
    changed."""
    now = _stat(python)
    if now is None:
        return f"{python} is gone"
    if not isinstance(old, dict) or not isinstance(old.get("sites"), dict):
        return "it was recorded without a signature"
    if old.get("python") != now:
        return f"{python} was replaced"
    for site, recorded in old["sites"].items():
        if _site_signature(site, recorded) != recorded:
            return f"the packages in {site} changed"
    return None


def _site_signature(site: str, recorded: Any = None) -> Optional[List[Any]]:
    """[mtime, hash of the installed packages' names and versions]. An unchanged time answers for
    the hash.

    A changed time alone means little: importing a module can make __pycache__ appear.
    """
    try:
        mtime = os.stat(site).st_mtime_ns
        torch = _stat(os.path.join(site, "torch", "version.py"))
        if isinstance(recorded, list) and recorded[:1] == [mtime] and recorded[2:] == [torch]:
            return recorded
        names = sorted(
            name
            for name in os.listdir(site)
            if name.endswith((".dist-info", ".egg-info", ".egg-link", ".pth"))
        )
    except OSError:
        return None
    digest = hashlib.sha256(repr(names).encode("utf-8", "replace")).hexdigest()[:16]
    if isinstance(recorded, list) and recorded[1:] == [digest, torch]:
        return recorded
    return [mtime, digest, torch]


def _stat(path: str) -> Optional[List[int]]:
    """[mtime in ns, size] of what the path leads to; None if there is nothing."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return [found.st_mtime_ns, found.st_size]


def why_missing(path: str) -> str:
    """A folder that is closed to this account hides what lies in it."""
    try:
        os.stat(path)
    except PermissionError:
        return f"it lies in a folder that is closed to {user_name()}"
    except (OSError, ValueError):
        pass
    return "it does not exist"


def _names_same(first: str, second: str) -> bool:
    """Two names in the same directory: `python` and `python3.11` of one venv; the shorter one is
    kept."""
    return os.path.realpath(os.path.dirname(first)) == os.path.realpath(os.path.dirname(second))


def _current(entry: Optional[Interpreter], path: str) -> bool:
    if not isinstance(entry, dict) or "path" not in entry or entry.get("stat") is None:
        return False
    return bool(entry["stat"] == _stat(path)) and (
        "real_stat" not in entry or bool(entry["real_stat"] == _stat(str(entry["path"])))
    )


def _cache_path(layout: Layout) -> str:
    return os.path.join(layout.agents, "interpreters.json")


def _read_cache(layout: Layout) -> Dict[str, Interpreter]:
    cache = read_json(_cache_path(layout)) or {}
    # A home may be shared between hosts, whose /usr/bin is not.
    if cache.get("version") != CACHE_VERSION or cache.get("host") != os.uname().nodename:
        return {}
    entries = cache.get("interpreters")
    return entries if isinstance(entries, dict) else {}


def in_threads(function: Any, items: Sequence[str]) -> List[Any]:
    """Results in order. Interpreters start slowly from a cold disk, so several start at once."""
    if not items:
        return []
    # Loaded where it is needed: a login that knows all interpreters starts sooner.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(MAX_WORKERS) as pool:
        return list(pool.map(function, items))
