"""The server's Python interpreters: what they are and have, and whether they are as they were."""

import hashlib
import json
import os
from typing import Any, Dict, List, Optional, Sequence

from remote.agent.environments.python_places import ask_plainly, candidates, network_environment
from remote.agent.machine.account import user_name
from remote.agent.shared.environment import Interpreter, Signature
from remote.agent.shared.reading import read

TIMEOUT_S = 60.0
MAX_WORKERS = 8

# Runs on any python 3; sys.path[0] is the working directory there, and not what a script would see.
SCRIPT = r"""
import json, os, platform, re, sys
sys.path = [p for p in sys.path if p not in ("", os.getcwd())]
answer = {"executable": sys.executable, "version": "%d.%d.%d" % sys.version_info[:3],
    "version_info": sys.version_info[:3], "prefix": sys.prefix}
def has(name):
    try:
        import importlib.util
        return importlib.util.find_spec(name) is not None
    except Exception:
        return False
answer["has_venv"] = has("venv") and has("ensurepip")
answer["has_pip"] = has("pip")
answer["has_virtualenv"] = has("virtualenv")
answer["is_venv"] = sys.prefix != getattr(sys, "base_prefix", sys.prefix)
names = ("site-packages", "dist-packages")
answer["sites"] = [p for p in sys.path if os.path.basename(p) in names and os.path.isdir(p)]
i = sys.implementation
v = "%d.%d.%d" % i.version[:3]
v += "" if i.version[3] == "final" else i.version[3][0] + str(i.version[4])
answer["markers"] = {"implementation_name": i.name, "implementation_version": v, "os_name": os.name,
    "platform_machine": platform.machine(), "platform_release": platform.release(),
    "platform_python_implementation": platform.python_implementation(),
    "platform_system": platform.system(), "platform_version": platform.version(),
    "python_full_version": platform.python_version(), "sys_platform": sys.platform,
    "python_version": ".".join(platform.python_version_tuple()[:2])}
if sys.version_info < (3, 8):
    print("\x1e" + json.dumps(answer)); sys.exit(0)
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
answer.update(packages=packages, requires=requires, urls=urls, torch=torch, commits=commits)
print("\x1e" + json.dumps(answer))
"""


def list_interpreters(
    configured: str, path: Optional[str], detail: Sequence[str]
) -> List[Interpreter]:
    """Every interpreter once, the configured one first, with `problem` where it can't be used.
    `path`: a PATH to look at beside this login's."""
    wanted = os.path.expanduser(configured.strip())
    paths = candidates(wanted, path)
    # Loaded where it is needed: most logins start no interpreter. They start slowly from a cold
    # disk, so several start at once.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(MAX_WORKERS) as pool:
        described = list(pool.map(lambda one: describe(one, detail), paths))
    found: Dict[str, Interpreter] = {}
    for one, entry in zip(paths, described):
        # One interpreter has many names; two venvs share a base, but never a prefix.
        if one == wanted or not entry.problem:
            found.setdefault(entry.prefix or one, entry._replace(configured=one == wanted))
    return list(found.values())


def describe(path: str, detail: Sequence[str] = ()) -> Interpreter:
    """What the interpreter says of itself, and what is installed in it; `detail`: packages whose
    needs are told (`name` or `name[extra,…]`)."""
    if not os.path.isabs(path):
        problem = f"remote.python must be an absolute path or begin with ~, not {path!r:.120}"
        return Interpreter(path, problem)
    if _stat(path) is None:
        return Interpreter(path, why_missing(path))
    said = ask_plainly([path, "-c", SCRIPT, *detail], TIMEOUT_S)
    try:
        told = json.loads(said.out.rpartition("\x1e")[2])
        executable = told["executable"]
    except (KeyError, TypeError, ValueError):
        return Interpreter(path, f"it does not run as python 3: {said.last_line[:200]}")
    # pyenv's shims, `conda run` wrappers and the like: what they lead to is the interpreter.
    leads = executable and _stat(executable) is not None and not _names_same(path, executable)
    return read(Interpreter, told)._replace(path=executable if leads else path)


def build_environment(temporary: str) -> Dict[str, str]:
    """What an installer finds around it."""
    values = dict(network_environment(), TMPDIR=temporary, PYTHONUNBUFFERED="1")
    values.pop("VIRTUAL_ENV", None)
    return values


def signature(python: str, sites: Sequence[str]) -> Signature:
    return Signature(tuple(_stat(python) or ()), {site: _site_signature(site) for site in sites})


def same_signature(old: Signature, python: str, version: str) -> Optional[str]:
    """None if nothing changed, else what did: `python` is gone or replaced, or the packages
    changed. A system's update to it is no other python."""
    now = _stat(python)
    if now is None:
        return f"{python} is gone"
    if not old.python:
        return "it was recorded without a signature"
    minor = version.rpartition(".")[0]
    if old.python != tuple(now) and f"Python {minor}." not in ask_plainly([python, "-V"], 15).out:
        return f"{python} was replaced"
    for site, recorded in old.sites.items():
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
