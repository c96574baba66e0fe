"""Who logs in to the server on loopback, with which keys and files; and whether sshd could serve
it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from remote.errors import ServerUnfit

HOST = "127.0.0.1"
START_TIMEOUT_S = 10.0
SBIN = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/local/bin", "/opt/homebrew/sbin", "/usr/bin")


@dataclass(frozen=True)
class Keys:
    """Private key files in OpenSSH's format, each with its public half beside it as
    `<name>.pub`."""

    host: Path
    user: Path


@dataclass(frozen=True)
class Serving:
    """What a server on loopback serves, and how."""

    # The HOME of its sessions; None: `home` in the server's directory.
    home: Path | None = None
    # Their PATH; None: this process's.
    path: str | None = None
    # What else stands in their environment.
    env: Mapping[str, str] = field(default_factory=dict)
    # None: the account's own.
    shell: str | None = None
    # The account to log in as by sshd, where this process is root; the HOME must be that account's.
    user: str | None = None
    keys: Keys | None = None
    # Of sshd_config; they come before ours and so win. The embedded server refuses them.
    options: Mapping[str, str] = field(default_factory=dict)
    # Also where sshd is installed.
    embedded: bool = False
    # Lets that in, too; by the embedded server alone.
    password: str | None = None


@dataclass(frozen=True)
class Route:
    """One way to log in: where, as whom, and the files with which `ssh -F ssh_config loopback` asks
    nothing."""

    host: str
    port: int
    user: str
    identity: Path
    known_hosts: Path
    ssh_config: Path


@dataclass(frozen=True)
class Session:
    """What a login gets: the account, and the environment and shell of its commands."""

    account: Account
    home: Path
    path: str
    env: Mapping[str, str]
    shell: str

    def environ(self) -> dict[str, str]:
        """HOME and PATH as chosen; `env` may override nothing of the account."""
        return {**self.env, "HOME": str(self.home), "PATH": self.path}


@dataclass(frozen=True)
class Account:
    """The part of a passwd entry that a login needs."""

    name: str
    uid: int
    gid: int
    shell: str
    known: bool = field(default=True)

    @classmethod
    def find(cls, name: str | None) -> Account:
        """The named account, or that of this process; a container's uid may have no entry, which
        only sshd minds."""
        import pwd

        try:
            entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
        except KeyError:
            if name:
                raise ServerUnfit(
                    f"there is no account {name!r} here", host=HOST, step="loopback server"
                ) from None
            return cls(f"uid{os.geteuid()}", os.geteuid(), os.getegid(), "/bin/sh", known=False)
        shell = entry.pw_shell if os.access(entry.pw_shell, os.X_OK) else "/bin/sh"
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid, shell)


class Backend(Protocol):
    """What serves: a real sshd or the embedded one. `open` returns the port."""

    kind: str

    def open(self) -> int: ...
    def close(self) -> None: ...


def find_sshd() -> str | None:
    """OpenSSH's daemon lives outside most users' PATH; sshd insists on being called by an absolute
    path."""
    return shutil.which("sshd", path=os.pathsep.join([*SBIN, os.environ.get("PATH", "")]))


def why_not_sshd(account: Account) -> str | None:
    """Why sshd can't serve a login to this account here; None if it can."""
    if find_sshd() is None:
        return "OpenSSH's sshd is not installed"
    if not account.known:
        return f"uid {account.uid} has no passwd entry"
    if os.path.basename(account.shell) in ("nologin", "false"):
        return f"the account {account.name} has no login shell"
    if os.geteuid() == 0 and _is_locked(account.name):
        return f"the account {account.name} is locked"
    return None


def _is_locked(name: str) -> bool:
    """sshd without PAM refuses an account whose password field begins with an exclamation mark."""
    try:
        lines = Path("/etc/shadow").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{name}:!") for line in lines)


def make_keys(directory: Path) -> Keys:
    """Generate a host key and a user key below `directory`."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Keys(make_key(directory / "host_key"), make_key(directory / "user_key"))


def make_key(path: Path) -> Path:
    """Write a fresh private key to `path` (0600) and its public half to `path`.pub."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(private)
    Path(f"{path}.pub").write_bytes(public + b"\n")
    return path


def render_ssh_config(route: Route) -> str:
    """A client configuration of one host, named `loopback`, that asks nothing and trusts exactly
    one key."""
    return f"""Host loopback
    HostName {route.host}
    Port {route.port}
    User {route.user}
    IdentityFile {quote(route.identity, percent=True)}
    IdentitiesOnly yes
    UserKnownHostsFile {quote(route.known_hosts, percent=True)}
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"""


def quote(value: object, percent: bool = False) -> str:
    """Quote for OpenSSH's configuration files, where `%` begins a token in some settings."""
    text = str(value)
    if any(character in text for character in "\n\r\0"):
        raise ValueError(f"OpenSSH's configuration can't hold a line break: {text!r}")
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text.replace("%", "%%") if percent else text}"'
