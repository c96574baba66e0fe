"""How pip was configured on this server, as pip reads it, and the same for the pip and uv that
build: indexes, proxies and certificates hold, what would send packages elsewhere does not."""

import os
from typing import Dict, List

# A build must not be sent elsewhere, or made to do nothing, by what a user has set for other
# purposes.
NOT_FOLLOWED = (
    "target",
    "prefix",
    "root",
    "user",
    "python",
    "dry-run",
    "report",
    "require-virtualenv",
    "no-deps",
    "ignore-installed",
    "no-build-isolation",
)
# What changes an installation and has no form in uv; pip heeds no names but its own either.
PIP_ALONE = {
    "abi",
    "all-releases",
    "build-constraint",
    "client-cert",
    "config-settings",
    "global-option",
    "group",
    "ignore-requires-python",
    "implementation",
    "only-deps",
    "only-final",
    "platform",
    "python-version",
    "require-hashes",
    "requirement",
    "uploaded-prior-to",
    "use-deprecated",
    "use-pep517",
}
# Where uv was told to look, by variables of its own.
UV_SOURCES = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_NO_INDEX",
    "UV_TORCH_BACKEND",
)
ON = ("1", "true", "yes", "on")


def pip_config(environment: Dict[str, str]) -> Dict[str, str]:
    """What pip was configured to do on this server, files and variables, as pip itself reads them:
    what is said for installing goes before what is said for all. May hold secrets."""
    own = environment.get("PIP_CONFIG_FILE", "")
    home = environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    files = ["/etc/xdg/pip/pip.conf", "/etc/pip.conf", os.path.expanduser("~/.pip/pip.conf")]
    files += [os.path.join(home, "pip", "pip.conf"), own]
    import configparser  # takes long to load

    parser = configparser.RawConfigParser()
    for path in files if own != os.devnull else []:
        try:
            parser.read(path, encoding="utf-8")
        except (ValueError, configparser.Error):
            pass  # pip refuses to start with such a file
    found: Dict[str, str] = {}
    for section in ("global", "install"):
        for key, value in parser.items(section) if parser.has_section(section) else ():
            found[key.lower().replace("_", "-")] = value.strip()
    for key, value in environment.items():
        name = key[4:].lower().replace("_", "-")
        if key.startswith("PIP_") and value.strip() and name != "config-file":
            found[name] = value.strip()
    return found


def is_on(config: Dict[str, str], name: str) -> bool:
    return config.get(name, "").lower() in ON


def without_indexes(config: Dict[str, str]) -> Dict[str, str]:
    """For torch's own index, which must not compete with one that offers the same version for
    another CUDA."""
    indexes = ("index-url", "extra-index-url", "no-index", "find-links")
    return {name: value for name, value in config.items() if name not in indexes}


def pip_environment(base: Dict[str, str], config: Dict[str, str]) -> Dict[str, str]:
    """The variables for a pip that follows `config` but for what would lead it away. Its files are
    not read again: an empty variable does not undo what stands in one."""
    values = {key: value for key, value in base.items() if not key.startswith("PIP_")}
    values["PIP_RESUME_RETRIES"] = "20"  # a wheel of torch's is cut more often than pip's five
    for name, value in config.items():
        if name not in NOT_FOLLOWED:
            values["PIP_" + name.upper().replace("-", "_")] = " ".join(value.split())
    return dict(
        values,
        PIP_CONFIG_FILE=os.devnull,
        PIP_USER="0",
        PIP_NO_INPUT="1",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )


def uv_environment(
    base: Dict[str, str], config: Dict[str, str], own_index: bool = False
) -> Dict[str, str]:
    """pip's settings in uv's form. As with pip, the best version of all indexes wins.

    `own_index`: that of the requirements is the only one. uv's own settings go before it else."""
    values = dict(base)
    if own_index:
        values = {key: value for key, value in base.items() if not key.startswith(UV_SOURCES)}
        values["UV_NO_CONFIG"] = "1"
    values.update(
        UV_INDEX_STRATEGY="unsafe-best-match", UV_PYTHON_DOWNLOADS="never", UV_NO_PROGRESS="1"
    )
    pairs = {
        "cert": "SSL_CERT_FILE",
        "proxy": "ALL_PROXY",
        "default-timeout": "UV_HTTP_TIMEOUT",
        "timeout": "UV_HTTP_TIMEOUT",
        "retries": "UV_HTTP_RETRIES",
        "trusted-host": "UV_INSECURE_HOST",
    }
    for name, variable in pairs.items():
        if config.get(name):
            values[variable] = " ".join(config[name].split())
    if is_on(config, "pre"):
        values["UV_PRERELEASE"] = "allow"
    return values


def index_lines(config: Dict[str, str], lines: List[str]) -> List[str]:
    """`lines` behind pip's configured indexes, as one file of requirements: the form that uv reads
    too, and off the command line. A file's own --index-url replaces the configured one."""
    found = []
    for name in ("index-url", "extra-index-url", "find-links"):
        found += [f"--{name} {value}" for value in config.get(name, "").split()]
    if is_on(config, "no-index"):
        found.append("--no-index")
    found += [f"--{name} {config[name]}" for name in ("only-binary", "no-binary") if name in config]
    if any(line.startswith("--index-url ") for line in lines):
        found = [line for line in found if not line.startswith("--index-url ")]
    return found + lines


def cache_place(tool: str, config: Dict[str, str], environment: Dict[str, str]) -> str:
    """The folder that pip or uv keeps its wheels in, or one above it."""
    named = config.get("cache-dir") if tool == "pip" else environment.get("UV_CACHE_DIR")
    place = named or environment.get("XDG_CACHE_HOME") or "~/.cache"
    return os.path.abspath(os.path.expanduser(place))
