"""Ways to make a venv and to install into it, whichever this server has: pip, uv, virtualenv,
another python's pip."""

import configparser
import glob
import os
import re
import shutil
import subprocess
from typing import Callable, Dict, List, Optional, Sequence, Tuple

Run = Callable[..., int]
"""`run(argv, environment)`: streams the output into the build's log and returns the exit code."""

INDEX_OPTIONS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "only-binary",
    "no-binary",
    "prefer-binary",
    "pre",
)
# What pip may be told that uv has in another form, or can do without.
HARMLESS = {
    "break-system-packages",
    "cache-dir",
    "cert",
    "default-timeout",
    "disable-pip-version-check",
    "exists-action",
    "keyring-provider",
    "no-cache-dir",
    "no-color",
    "no-input",
    "no-warn-script-location",
    "progress-bar",
    "proxy",
    "quiet",
    "resume-retries",
    "retries",
    "root-user-action",
    "timeout",
    "trusted-host",
    "upgrade-strategy",
    "use-feature",
    "user",
    "verbose",
    "no-python-version-warning",
    "no-warn-conflicts",
    "log",
    "require-virtualenv",
    "yes",
}
# A build must not be sent elsewhere by what a user has set for other purposes.
PIP_UNSET = (
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_REQUIRE_VIRTUALENV",
    "PIP_DRY_RUN",
    "PIP_REPORT",
    "PIP_PYTHON",
)
UV_PLACES = (
    "~/.local/bin/uv",
    "~/.cargo/bin/uv",
    "/usr/local/bin/uv",
    "/opt/conda/bin/uv",
    "~/miniconda3/bin/uv",
)
APT_REMEDY = "ask for `apt install python3-venv` there, or set remote.python to a conda python"


class InstallerMissing(Exception):
    """No way was found to make a venv, or to install into it."""


def find_uv() -> Optional[str]:
    places = [shutil.which("uv"), *(os.path.expanduser(place) for place in UV_PLACES)]
    return next((path for path in places if path and os.access(path, os.X_OK)), None)


def pip_config(prefix: str = "") -> Dict[str, str]:
    """What pip was configured to do on this server, files and environment, as pip itself reads
    them. May hold secrets."""
    environment_file = os.environ.get("PIP_CONFIG_FILE", "")
    found: Dict[str, str] = {}
    if environment_file != os.devnull:
        files = [
            *glob.glob("/etc/xdg/pip/pip.conf"),
            "/etc/pip.conf",
            os.path.expanduser("~/.pip/pip.conf"),
        ]
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        files += [
            os.path.join(home, "pip", "pip.conf"),
            os.path.join(prefix, "pip.conf") if prefix else "",
            environment_file,
        ]
        for path in files:
            found.update(_read_pip_conf(path) if path else {})
    for key, value in os.environ.items():
        name = key[4:].lower().replace("_", "-")
        if key.startswith("PIP_") and value.strip() and name != "config-file":
            found[name] = value.strip()
    return found


def _read_pip_conf(path: str) -> Dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except (OSError, ValueError, configparser.Error):
        return {}
    found: Dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            found.update(
                {
                    key.lower().replace("_", "-"): value.strip()
                    for key, value in parser.items(section)
                }
            )
    return found


def pip_only_options(config: Dict[str, str]) -> List[str]:
    """Settings that uv would ignore: with any of them, pip does the work."""
    return sorted(
        name
        for name in config
        if name not in HARMLESS and name not in INDEX_OPTIONS and name != "constraint"
    )


def index_lines(config: Dict[str, str]) -> List[str]:
    """pip's configured indexes as lines of a requirements file, the form that uv reads too; keeps
    them off the argv."""
    lines = []
    for name in ("index-url", "extra-index-url", "find-links"):
        lines += [f"--{name} {value}" for value in config.get(name, "").split()]
    if config.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        lines.append("--no-index")
    lines += [
        f"--{name} {config[name]}" for name in ("only-binary", "no-binary") if config.get(name)
    ]
    return lines


def uv_environment(config: Dict[str, str]) -> Dict[str, str]:
    """pip's settings in uv's form. As with pip, the best version of all indexes wins."""
    values = {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
    }
    pairs = {
        "cert": "SSL_CERT_FILE",
        "proxy": "ALL_PROXY",
        "timeout": "UV_HTTP_TIMEOUT",
        "trusted-host": "UV_INSECURE_HOST",
    }
    for name, variable in pairs.items():
        if config.get(name):
            values[variable] = " ".join(config[name].split())
    if config.get("default-timeout"):
        values.setdefault("UV_HTTP_TIMEOUT", config["default-timeout"])
    if config.get("constraint"):
        values["UV_CONSTRAINT"] = " ".join(config["constraint"].split())
    if config.get("pre", "").lower() in ("1", "true", "yes", "on"):
        values["UV_PRERELEASE"] = "allow"
    return values


def without_indexes(config: Dict[str, str]) -> Dict[str, str]:
    return {
        name: value
        for name, value in config.items()
        if name not in ("index-url", "extra-index-url", "no-index")
    }


def merge_options(configured: List[str], lines: List[str]) -> List[str]:
    """A file's own --index-url replaces the configured one, as on pip's command line; the rest adds
    up."""
    if any(line.startswith("--index-url ") for line in lines):
        configured = [line for line in configured if not line.startswith("--index-url ")]
    return configured + lines


def isolated_environment(environment: Dict[str, str], config: Dict[str, str]) -> Dict[str, str]:
    """For a pip that must not ask the configured indexes, but keep the other settings: an index of
    torch builds must not compete with one that offers the same version for another CUDA."""
    values = {
        key: value
        for key, value in environment.items()
        if key not in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
    }
    for name in (
        "cert",
        "proxy",
        "trusted-host",
        "timeout",
        "default-timeout",
        "find-links",
        "retries",
    ):
        if config.get(name):
            values["PIP_" + name.upper().replace("-", "_")] = " ".join(config[name].split())
    return dict(values, PIP_CONFIG_FILE=os.devnull)


def build_environment(base: Dict[str, str], temporary: str) -> Dict[str, str]:
    values = {
        key: value for key, value in base.items() if key not in PIP_UNSET and key != "VIRTUAL_ENV"
    }
    # `user = true` in pip.conf would put everything beside the venv.
    values.update(
        PIP_USER="0",
        PIP_NO_INPUT="1",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        TMPDIR=temporary,
        PYTHONUNBUFFERED="1",
    )
    return values


def make_venv(run: Run, python: str, target: str, inherit: bool, uv: Optional[str]) -> str:
    """Make a venv of `python` at `target`; `inherit`: it sees the interpreter's own packages.
    Returns how it was made."""
    flags = ["--system-site-packages"] if inherit else []
    ways: List[Tuple[str, List[str]]] = []
    if uv and not inherit:
        ways.append(("uv", [uv, "venv", "--python", python, target]))
    if _imports(python, "ensurepip") and _imports(python, "venv"):
        ways.append(("venv", [python, "-m", "venv", *flags, target]))
    if _imports(python, "virtualenv"):
        ways.append(("virtualenv", [python, "-m", "virtualenv", *flags, target]))
    if uv and inherit:
        ways.append(("uv", [uv, "venv", *flags, "--python", python, target]))
    if shutil.which("virtualenv"):
        ways.append(("virtualenv", ["virtualenv", "-p", python, *flags, target]))
    if _imports(python, "venv"):
        ways.append(("venv without pip", [python, "-m", "venv", "--without-pip", *flags, target]))
    for name, argv in ways:
        shutil.rmtree(target, ignore_errors=True)
        if run(argv) == 0 and os.access(os.path.join(target, "bin", "python"), os.X_OK):
            return name
    raise InstallerMissing(f"{python} can't make a venv: the module venv or ensurepip is missing")


def find_pip(python: str, helpers: Sequence[str]) -> Optional[List[str]]:
    """The start of a pip command that installs into `python`: its own pip, else that of another
    interpreter."""
    if _pip_version([python]) is not None:
        return [python, "-m", "pip"]
    for helper in helpers:
        version = _pip_version([helper])
        if version is not None and version >= (22, 3):
            return [helper, "-m", "pip", "--python", python]
    return None


def pip_install(pip: List[str], file: str, constraints: Optional[str], cache: bool) -> List[str]:
    """Without `constraints` the file is a whole lock: every package of it and no others."""
    argv = [
        *pip,
        "install",
        "--requirement",
        file,
        *(["--constraint", constraints] if constraints else ["--no-deps"]),
    ]
    if (_pip_version(pip[:1]) or (0, 0)) >= (24, 1):
        argv += ["--progress-bar", "raw"]
    return argv + ([] if cache else ["--no-cache-dir"])


def uv_install(
    uv: str, python: str, file: str, constraints: Optional[str], cache: bool
) -> List[str]:
    argv = [uv, "pip", "install", "--python", python, "--requirement", file]
    argv += ["--constraint", constraints] if constraints else ["--no-deps", "--require-hashes"]
    return argv + ([] if cache else ["--no-cache"])


def _imports(python: str, module: str) -> bool:
    return _ask([python, "-c", f"import {module}"]) is not None


def _pip_version(python: List[str]) -> Optional[Tuple[int, int]]:
    match = re.match(r"pip (\d+)\.(\d+)", _ask([*python, "-m", "pip", "--version"]) or "")
    return (int(match.group(1)), int(match.group(2))) if match else None


def _ask(argv: List[str]) -> Optional[str]:
    """stdout, or None where the command fails."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
            cwd="/",
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
