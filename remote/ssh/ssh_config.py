"""What OpenSSH would use for a host: `ssh -G` asked once, or a small reader of ssh_config where there's no OpenSSH client."""

from __future__ import annotations

import fnmatch
import getpass
import hashlib
import ipaddress
import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from remote.errors import UsageError
from remote.screen.text import one_line

RESOLVE_TIMEOUT_S = 15.0
Options = Mapping[str, list[str]]
"""Lower-case keyword to its values, as `ssh -G` prints them."""

DEFAULT_IDENTITIES = tuple(f"~/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk", "xmss", "dsa"))
METHODS = ("publickey", "keyboard-interactive", "password")


@dataclass(frozen=True)
class Spec:
    """A host as typed, taken apart."""

    host: str
    user: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class HostConfig:
    """Everything that decides how one host is reached and trusted."""

    name: str
    hostname: str
    user: str
    port: int
    identity_files: tuple[str, ...] = ()
    identities_only: bool = False
    certificate_files: tuple[str, ...] = ()
    # The agent's socket; None: the environment's; "": no agent at all.
    agent_socket: str | None = None
    methods: tuple[str, ...] = METHODS
    batch: bool = False
    prompts: int = 3
    jumps: tuple[str, ...] = ()
    proxy_command: str | None = None
    host_key_alias: str | None = None
    host_key_algorithms: tuple[str, ...] = ()
    known_hosts: tuple[str, ...] = ()
    global_known_hosts: tuple[str, ...] = ()
    revoked_host_keys: str | None = None
    # "yes", "ask", "accept-new" or "no".
    strict: str = "ask"
    hash_known_hosts: bool = False
    connect_timeout_s: float | None = None
    family: str = "any"
    bind_address: str | None = None
    keepalive_s: int = 15


def parse_spec(text: str) -> Spec:
    """`user@host:port`, `alias`, `[::1]:2222`, `user@fe80::1`, `ssh://user@host:port`. UsageError for anything else."""
    rest = text.strip()
    if rest.startswith("ssh://"):
        rest = rest[6:].rstrip("/")
    user, at, rest = rest.rpartition("@")
    if at and not user:
        raise UsageError(f"{one_line(text, 100)!r} names no user before the @", remedy="write user@host or host")
    host, port = _split_port(rest)
    # A leading dash would be an option to ssh; the other characters can stand in no name and would end up in a command.
    if not host or host.startswith("-") or re.search(r"[\s\x00-\x1f\x7f'\"`$;&|<>(){}\\*?!,]", host):
        raise UsageError(f"{one_line(text, 100)!r} is no host", remedy="write user@host, user@host:port or [address]:port")
    if user.startswith("-") or re.search(r"[\s\x00-\x1f\x7f'\"`$;&|<>(){}]", user):
        raise UsageError(f"{one_line(text, 100)!r}: the user's name can't be used")
    if port is None:
        return Spec(host, user or None)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"{one_line(text, 100)!r}: the port is a number from 1 to 65535")
    return Spec(host, user or None, int(port))


def _split_port(text: str) -> tuple[str, str | None]:
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", text)
    if bracketed:
        return bracketed[1], bracketed[2]
    if text.count(":") > 1:
        try:
            ipaddress.IPv6Address(text)
        except ValueError:
            return "", None
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def resolve(spec: Spec, config_file: str | None = None, identities: tuple[str, ...] = ()) -> HostConfig:
    """The settings for one host. UsageError when ssh_config or an identity given on the command line can't be used."""
    for path in identities:
        if not os.path.isfile(os.path.expanduser(path)):
            raise UsageError(f"the identity file {path!r} does not exist", host=spec.host, remedy="name the private key after -i")
    if config_file is not None and not os.path.isfile(config_file):
        raise UsageError(f"the ssh_config file {config_file!r} does not exist", host=spec.host)
    ssh = shutil.which("ssh")
    options = _ask_ssh(ssh, spec, config_file) if ssh else read_without_ssh(spec, config_file)
    return build(spec, options, identities)


def _ask_ssh(ssh: str, spec: Spec, config_file: str | None) -> Options:
    command = [ssh, "-G"]
    command += ["-F", config_file] if config_file else []
    command += ["-p", str(spec.port)] if spec.port else []
    command += ["-l", spec.user] if spec.user else []
    try:
        done = subprocess.run(
            [*command, "--", spec.host], stdin=subprocess.DEVNULL, capture_output=True, timeout=RESOLVE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"`ssh -G {spec.host}` did not answer for {RESOLVE_TIMEOUT_S:g} s",
            remedy="a `Match exec` in ssh_config may hang; try the command by hand",
        ) from None
    except OSError as error:
        raise UsageError(f"the OpenSSH client could not be started: {error.strerror or error}") from None
    if done.returncode != 0:
        said = one_line(done.stderr.decode("utf-8", "replace"), 300) or f"exit code {done.returncode}"
        raise UsageError(f"ssh_config can't be read: {said}", host=spec.host, remedy=f"try `ssh -G {spec.host}` by hand")
    return parse_options(os.fsdecode(done.stdout))


def parse_options(text: str) -> Options:
    """The output of `ssh -G`."""
    options: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key:
            options.setdefault(key.lower(), []).append(value.strip())
    return options


def build(spec: Spec, options: Options, identities: tuple[str, ...] = ()) -> HostConfig:
    """Pure but for the local user's name and home."""

    def one(key: str, default: str = "") -> str:
        return options[key][0] if options.get(key) else default

    user = spec.user or one("user") or local_user()
    port = spec.port or int(one("port", "22"))
    alias = _not_none(one("hostkeyalias"))
    tokens = {"%": "%", "h": spec.host, "n": spec.host, "p": str(port), "r": user, "u": local_user(), "d": str(home())}
    tokens |= {"k": alias or spec.host, "j": one("proxyjump"), "i": str(os.getuid()) if hasattr(os, "getuid") else ""}
    tokens |= {"l": socket.gethostname(), "L": socket.gethostname().partition(".")[0]}
    hostname = expand(one("hostname", spec.host), tokens)
    tokens |= {"h": hostname, "k": (alias or hostname).lower()}
    tokens["C"] = hashlib.sha1("".join((tokens["l"], hostname, str(port), user, tokens["j"])).encode()).hexdigest()

    def path(text: str) -> str:
        return _expand_home(expand(_environment(text), tokens))

    def paths(key: str) -> tuple[str, ...]:
        found = [part for value in options.get(key, []) for part in split_paths(value)]
        return tuple(path(part) for part in found if part.lower() not in ("none", "/dev/null"))

    configured = [value for value in options.get("identityfile", []) if value.lower() != "none"]
    if identities and tuple(configured) == tuple(value for value in DEFAULT_IDENTITIES if value in configured):
        configured = []  # Only the defaults: like ssh, none of them beside a key that was asked for.
    files = dict.fromkeys([*map(os.path.expanduser, identities), *(path(_unquote(value)) for value in configured)])
    agent = one("identityagent")
    jump, proxy = _not_none(one("proxyjump")), _not_none(one("proxycommand"))
    return HostConfig(
        name=spec.host,
        hostname=hostname,
        user=user,
        port=port,
        identity_files=tuple(files),
        identities_only=_yes(one("identitiesonly")),
        certificate_files=tuple(path(_unquote(value)) for value in options.get("certificatefile", []) if value.lower() != "none"),
        agent_socket=_agent_socket(agent, path),
        methods=_methods(one),
        batch=_yes(one("batchmode")),
        prompts=_count(one("numberofpasswordprompts"), 3),
        jumps=tuple(part for part in jump.split(",") if part) if jump else (),
        proxy_command=expand(proxy, tokens) if proxy and not jump else None,
        host_key_alias=alias,
        host_key_algorithms=tuple(part for part in one("hostkeyalgorithms").split(",") if part),
        known_hosts=paths("userknownhostsfile"),
        global_known_hosts=paths("globalknownhostsfile"),
        revoked_host_keys=path(_unquote(one("revokedhostkeys"))) if _not_none(one("revokedhostkeys")) else None,
        strict=_strict(one("stricthostkeychecking", "ask").lower()),
        hash_known_hosts=_yes(one("hashknownhosts")),
        connect_timeout_s=float(_count(one("connecttimeout"), 0)) or None,
        family=one("addressfamily", "any").lower(),
        bind_address=_not_none(one("bindaddress")),
        keepalive_s=_count(one("serveraliveinterval"), 0) or 15,
    )


def _agent_socket(value: str, path: Callable[[str], str]) -> str | None:
    value = _unquote(value)
    if not value or value == "SSH_AUTH_SOCK":
        return None
    if value.lower() == "none":
        return ""
    return os.environ.get(value[1:], "") if re.fullmatch(r"\$\w+", value) else path(value)


def _methods(one: Callable[..., str]) -> tuple[str, ...]:
    switches = {
        "publickey": "pubkeyauthentication",
        "keyboard-interactive": "kbdinteractiveauthentication",
        "password": "passwordauthentication",
    }
    wanted = [part.strip() for part in one("preferredauthentications", ",".join(METHODS)).split(",")]
    return tuple(method for method in wanted if method in METHODS and one(switches[method], "yes").lower() not in ("no", "false"))


def _strict(value: str) -> str:
    return {"true": "yes", "false": "no", "off": "no"}.get(value, value if value in ("yes", "no", "ask", "accept-new") else "ask")


def _yes(value: str) -> bool:
    return value.lower() in ("yes", "true")


def _count(value: str, default: int) -> int:
    return int(value) if value.isascii() and value.isdigit() else default


def _not_none(value: str) -> str | None:
    return None if not value or value.lower() == "none" else value


def _unquote(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


def split_paths(value: str) -> list[str]:
    """`ssh -G` prints a list of files with blanks between them, blanks inside names included: a new one starts like a path."""
    parts: list[str] = []
    for part in value.split(" "):
        if not parts or re.match(r"[/~%\\]|\$\{|[A-Za-z]:[/\\]|__PROGRAMDATA__|none$", part):
            parts.append(part)
        else:
            parts[-1] += " " + part
    return [_unquote(part.strip()) for part in parts if part.strip()]


def expand(text: str, tokens: Mapping[str, str]) -> str:
    """ssh_config's percent tokens; an unknown one stays as it is."""
    return re.sub(r"%(.)", lambda found: tokens.get(found[1], found[0]), text)


def _environment(text: str) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: os.environ.get(found[1], found[0]), text)


def _expand_home(text: str) -> str:
    return str(home()) + text[1:] if text == "~" or text.startswith(("~/", "~\\")) else os.path.expanduser(text)


def home() -> Path:
    """The account's home, not $HOME: that's where OpenSSH looks."""
    try:
        import pwd

        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except (ImportError, KeyError):
        return Path.home()


def local_user() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return getpass.getuser()


# -- without an OpenSSH client


def read_without_ssh(spec: Spec, config_file: str | None) -> Options:
    """The same options from the files themselves: Host, Include and `Match all`; any other Match is passed over."""
    options: dict[str, list[str]] = {}
    for file in [Path(config_file)] if config_file else [home() / ".ssh" / "config", Path("/etc/ssh/ssh_config")]:
        for key, value in _matching(file, spec.host, 0):
            if key in ("identityfile", "certificatefile"):
                options.setdefault(key, []).append(value)
            else:
                options.setdefault(key, [value])
    options.setdefault("identityfile", list(DEFAULT_IDENTITIES))
    options.setdefault("userknownhostsfile", ["~/.ssh/known_hosts ~/.ssh/known_hosts2"])
    options.setdefault("globalknownhostsfile", ["/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"])
    return options


def _matching(file: Path, host: str, depth: int) -> Iterator[tuple[str, str]]:
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    applies = True
    for line in text.splitlines():
        found = re.fullmatch(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+)(.+?)\s*", line)
        if not found:
            continue
        key, value = found[1].lower(), found[2]
        if key == "host":
            applies = _host_matches(_words(value), host)
        elif key == "match":
            applies = [word.lower() for word in _words(value)] == ["all"]
        elif applies and key == "include" and depth < 16:
            for pattern in _words(value):
                base = Path(_expand_home(pattern))
                base = base if base.is_absolute() else home() / ".ssh" / base
                for inner in sorted(base.parent.glob(base.name)):
                    yield from _matching(inner, host, depth + 1)
        elif applies:
            words = _words(value)
            yield key, value if key == "proxycommand" else " ".join(words)


def _words(value: str) -> list[str]:
    """Arguments of one line: quotes group, `#` starts a note."""
    reader = shlex.shlex(value, posix=True, punctuation_chars=False)
    reader.whitespace_split, reader.escape, reader.quotes = True, "", '"'
    try:
        return list(reader)
    except ValueError:
        return value.split()


def _host_matches(patterns: list[str], host: str) -> bool:
    def hit(pattern: str) -> bool:
        return fnmatch.fnmatchcase(host.lower(), pattern.lower().replace("[", "[[]"))

    if any(hit(pattern[1:]) for pattern in patterns if pattern.startswith("!")):
        return False
    return any(hit(pattern) for pattern in patterns if not pattern.startswith("!"))
