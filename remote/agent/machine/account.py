"""The login's own account: which public keys may log in."""

import getpass
import os
import pwd
import re
from typing import Any, Dict

from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import read_text, write_whole

KEY = re.compile(
    r"(?:ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp\d+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/]+={0,3}(?:"
    r" [^\r\n\0]{0,200})?\Z"
)


@operation("key_add")
def key_add(call: Call, key: str) -> Dict[str, Any]:
    """Add a line to ~/.ssh/authorized_keys, with the rights that sshd insists on; a key that is
    there already stays as it is."""
    if not KEY.match(key):
        raise Refusal("UsageError", "that is no public key")
    folder = os.path.expanduser("~/.ssh")
    path = os.path.join(folder, "authorized_keys")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    try:
        with open(path, "rb") as file:
            before = file.read()
    except FileNotFoundError:
        before = b""
    known = any(
        key.split(" ")[1].encode() in line.split()
        for line in before.splitlines()
        if not line.lstrip().startswith(b"#")
    )
    # sshd ignores a file that others may write to.
    for place in (folder, path):
        if os.path.exists(place) and os.stat(place).st_mode & 0o022:
            os.chmod(place, os.stat(place).st_mode & ~0o022 & 0o7777)
    if not known:
        separator = b"" if not before or before.endswith(b"\n") else b"\n"
        # Through a link, where the file is one: people keep theirs in a repository.
        write_whole(os.path.realpath(path), before + separator + key.encode() + b"\n")
    return {"added": not known, "path": path}


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def kills_at_logout() -> bool:
    """True where systemd-logind is told to kill what a user leaves behind, and lingering is off for
    this user."""
    setting = False
    for line in read_text("/etc/systemd/logind.conf").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "KillUserProcesses":
            setting = value.strip().lower() in ("yes", "true", "1", "on")
    return setting and not os.path.exists(os.path.join("/var/lib/systemd/linger", user_name()))
