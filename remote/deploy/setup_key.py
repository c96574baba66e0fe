"""`setup-key`: one login with a password, and none after it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import shutil
import subprocess
from pathlib import Path

from remote.errors import AuthenticationFailed, UsageError
from remote.link.answers import KeyAdd
from remote.link.session import Session
from remote.ssh.login import connect
from remote.ssh.openssh import identity_files
from remote.ssh.process import Process
from remote.ssh.target import Target

PREFERRED = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")


def setup_key(session: Session) -> None:
    """Install a public key of this computer, and log in with it alone. Raises AuthenticationFailed
    where the server won't take it."""
    key = choose_key(session)
    public = read_public(key)
    answer = session.ask(KeyAdd, key=public)
    session.close()
    where = "added to" if answer.added else "in place already in"
    session.display.line(f"{key.name}: {where} ~/.ssh/authorized_keys on {session.host}")
    try:
        taken = log_in_with(key, public, session.target)
    except AuthenticationFailed as error:
        raise refused(session, error.message) from None
    if not taken:
        raise refused(session, "it lets in by another one")
    if is_encrypted(key):
        session.display.line("logged in with it")
    else:
        session.display.line("logged in with it: later commands ask for no password")


def log_in_with(key: Path, public: str, target: Target) -> bool:
    """Whether the server takes this key, and not only another one. Raises what the login does."""
    alone = dataclasses.replace(target, identities=(str(key),), password=None, only_key=True)
    with connect(alone) as connection:
        process = connection.start("exit 0")
        process.receive(1)
        blob = base64.b64decode(public.split()[1])
        fingerprint = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
        return not isinstance(process, Process) or f"SHA256:{fingerprint}" in process.log.keys


def refused(session: Session, why: str) -> AuthenticationFailed:
    return AuthenticationFailed(
        f"the server does not take the key ({why})",
        host=session.host,
        step="setup-key",
        remedy=(
            "its sshd may forbid public keys (PubkeyAuthentication), or the home may be"
            " writable by others"
        ),
    )


def choose_key(session: Session) -> Path:
    """The private key of -i, that of ssh_config, the first usual one, or a new one."""
    given = [Path(name).expanduser() for name in session.target.identities]
    order = {name: place for place, name in enumerate(PREFERRED)}
    configured = sorted(identity_files(session.target), key=lambda key: order.get(key.name, -1))
    usual = [Path.home() / ".ssh" / name for name in PREFERRED]
    for key in [*given, *configured, *usual]:
        if key.exists() or key.with_name(key.name + ".pub").exists():
            return key
    if given:
        raise UsageError(
            f"{given[0]}: no such key",
            step="setup-key",
            remedy="name a private key with -i, or none to make one",
        )
    return make_key(usual[0], session)


def make_key(key: Path, session: Session) -> Path:
    if shutil.which("ssh-keygen") is None:
        raise UsageError(
            "there is no key here, and no ssh-keygen to make one",
            step="setup-key",
            remedy="install the OpenSSH client",
        )
    key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    session.display.note(f"made a key: {key}")
    return key


def read_public(key: Path) -> str:
    """The public half, from the file beside it or out of the key."""
    beside = key.with_name(key.name + ".pub")
    if beside.exists():
        return beside.read_text(encoding="utf-8", errors="replace").strip()
    if shutil.which("ssh-keygen"):
        argv = ["ssh-keygen", "-y", "-f", str(key)]
        done = subprocess.run(argv, capture_output=True, text=True)
        if not done.returncode:
            return done.stdout.strip()
    remedy = f"ssh-keygen -y -f {key} > {beside}"
    raise UsageError(f"{beside} is missing", step="setup-key", remedy=remedy)


def is_encrypted(key: Path) -> bool:
    """An agent will ask for its passphrase, once."""
    try:
        text = key.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    if "ENCRYPTED" in text:
        return True
    body = "".join(line for line in text.splitlines() if "-----" not in line)
    try:
        return "OPENSSH" in text and not base64.b64decode(body)[15:].startswith(b"\0\0\0\x04none")
    except ValueError:
        return False
