"""The keys that may log in: files, certificates and the agent, in the order in which they are offered."""

from __future__ import annotations

import base64
import binascii
import io
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from remote.errors import AuthenticationFailed
from remote.screen.text import one_line
from remote.ssh.host_keys import fingerprint
from remote.ssh.ssh_config import HostConfig

PASSPHRASE_TRIES = 3
AGENT_LIST_S, AGENT_SIGN_S = 5.0, 60.0
MAGIC = b"openssh-key-v1\0"
_unlocked: dict[str, Any] = {}
"""Decrypted keys by path: a reconnect, and the next host, don't ask again."""


@dataclass(frozen=True)
class Identity:
    """One key to offer. `unlock` asks for a passphrase and returns the key, or None when the key can't be had."""

    label: str
    key: Any = field(default=None, repr=False)
    unlock: Callable[[], Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class KeyFile:
    """An identity file as far as it shows itself without a passphrase."""

    path: str
    data: bytes = field(repr=False)
    public: bytes | None
    encrypted: bool
    # Only the public half is here; the private one is in the agent.
    public_only: bool = False


def collect(config: HostConfig, secrets: Secrets, notes: list[str]) -> list[Identity]:
    """In order: files that are in the agent or not encrypted, the agent's other keys, encrypted files."""
    if "publickey" not in config.methods:
        return []
    files = [file for path in config.identity_files if (file := read_key_file(path, notes)) is not None]
    agent = agent_keys(config, notes)
    by_blob = {key.asbytes(): key for key in agent}
    first: list[Identity] = []
    locked: list[Identity] = []
    used: set[bytes] = set()
    for file in files:
        held = by_blob.get(file.public or b"")
        if held is not None:
            used.add(file.public or b"")
            first.append(Identity(f"{file.path} (in the agent)", held))
        elif file.public_only:
            notes.append(f"{file.path} is a public key, and the agent does not hold its private half")
        elif file.path in _unlocked:
            first += _with_certificates(file.path, _unlocked[file.path], config)
        elif file.encrypted:
            locked.append(Identity(file.path, unlock=partial(unlock, file, secrets, notes)))
        elif (key := load(file, None, notes)) is not None:
            first += _with_certificates(file.path, key, config)
    others = [] if config.identities_only else [key for key in agent if key.asbytes() not in used]
    return (
        first
        + [Identity(f"agent key {one_line(key.comment, 60)} {fingerprint(key.asbytes())[:18]}…", key) for key in others]
        + locked
    )


def read_key_file(path: str, notes: list[str]) -> KeyFile | None:
    """None where there is no such file, which is usual: ssh lists all default names."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        beside = _sibling(path)
        return KeyFile(path, b"", beside, encrypted=False, public_only=True) if beside else None
    except OSError as error:
        notes.append(f"{path} can't be read ({error.strerror})")
        return None
    public = public_of_line(data)
    if public is not None:
        return KeyFile(path, b"", public, encrypted=False, public_only=True)
    header = parse_openssh_header(data)
    if header is not None:
        return KeyFile(path, data, header[1], encrypted=header[0])
    return KeyFile(path, data, _sibling(path), encrypted=b"ENCRYPTED" in data[:200])


def _sibling(path: str) -> bytes | None:
    try:
        return public_of_line(Path(path + ".pub").read_bytes())
    except OSError:
        return None


def public_of_line(data: bytes) -> bytes | None:
    """The blob of a one-line public key."""
    parts = data.split(None, 2)
    if len(parts) < 2 or not parts[0].startswith((b"ssh-", b"ecdsa-", b"sk-")):
        return None
    try:
        return base64.b64decode(parts[1], validate=True)
    except (binascii.Error, ValueError):
        return None


def parse_openssh_header(data: bytes) -> tuple[bool, bytes] | None:
    """(encrypted, public blob) of a key in OpenSSH's own format, which keeps both in the clear. (PROTOCOL.key)"""
    lines = data.strip().splitlines()
    if not lines or lines[0].strip() != b"-----BEGIN OPENSSH PRIVATE KEY-----":
        return None
    try:
        body = base64.b64decode(b"".join(lines[1:-1]))
    except (binascii.Error, ValueError):
        return None
    if not body.startswith(MAGIC):
        return None
    at = len(MAGIC)
    fields = []
    for index in range(4):
        if index == 3:
            at += 4  # the number of keys
        size = int.from_bytes(body[at : at + 4], "big")
        fields.append(body[at + 4 : at + 4 + size])
        at += 4 + size
    return fields[0] != b"none", fields[3]


def load(file: KeyFile, passphrase: bytes | None, notes: list[str]) -> Any:
    """The private key, or None with a note. Raises ValueError for a wrong passphrase."""
    import paramiko
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as serial
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    reader = serial.load_ssh_private_key if b"BEGIN OPENSSH" in file.data[:100] else serial.load_pem_private_key
    try:
        private = reader(file.data, passphrase)
    except TypeError:
        notes.append(f"{file.path} is protected by a passphrase")
        return None
    except (UnsupportedAlgorithm, ValueError) as error:
        if passphrase is not None and isinstance(error, ValueError):
            raise
        notes.append(f"{file.path} is no private key that can be used here")
        return None
    kinds: list[tuple[type, type[paramiko.PKey]]] = [
        (ed25519.Ed25519PrivateKey, paramiko.Ed25519Key),
        (rsa.RSAPrivateKey, paramiko.RSAKey),
        (ec.EllipticCurvePrivateKey, paramiko.ECDSAKey),
    ]
    # Through OpenSSH's format in memory, so that every spelling of a key (PKCS#1, PKCS#8, SEC1) is read by one reader.
    for kind, wrapper in kinds:
        if isinstance(private, kind):
            plain = private.private_bytes(serial.Encoding.PEM, serial.PrivateFormat.OpenSSH, serial.NoEncryption())
            return wrapper.from_private_key(io.StringIO(plain.decode()))
    notes.append(f"{file.path} is a kind of key that can't be used here")
    return None


def unlock(file: KeyFile, secrets: Secrets, notes: list[str]) -> Any:
    """Ask for the passphrase, at most three times."""
    for attempt in range(PASSPHRASE_TRIES):
        text = secrets.passphrase(file.path, attempt)
        if text is None:
            notes.append(f"{file.path} is protected by a passphrase, and nobody can be asked for it here")
            return None
        if not text:
            break
        try:
            key = load(file, text.encode(), notes)
        except ValueError:
            continue
        _unlocked[file.path] = key
        return key
    notes.append(f"the passphrase for {file.path} was wrong")
    return None


def _with_certificates(path: str, key: Any, config: HostConfig) -> list[Identity]:
    """A certificate made for this key goes before the bare key."""
    found = []
    for file in (*config.certificate_files, f"{path}-cert.pub"):
        if not os.path.isfile(file):
            continue
        import copy

        certified = copy.copy(key)
        try:
            certified.load_certificate(file)
        except Exception:  # made for another key, or no certificate at all: paramiko raises several kinds
            continue
        found.append(Identity(f"{file}", certified))
        break
    return [*found, Identity(path, key)]


def agent_keys(config: HostConfig, notes: list[str]) -> list[Any]:
    """The agent's keys, asked with a deadline; none where there is no agent."""
    import paramiko
    from paramiko.agent import AgentSSH

    if config.agent_socket == "":
        return []
    if sys.platform == "win32":
        try:
            return list(paramiko.Agent().get_keys())
        except (paramiko.SSHException, OSError):
            return []
    path = config.agent_socket or os.environ.get("SSH_AUTH_SOCK")
    if not path:
        return []
    conn = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        conn.settimeout(AGENT_LIST_S)
        conn.connect(path)
        agent = AgentSSH()
        agent._connect(conn)  # type: ignore[attr-defined]
        conn.settimeout(AGENT_SIGN_S)
        return list(agent.get_keys())
    except Exception as error:  # an agent that is gone, hangs or talks nonsense costs its keys, not the login
        conn.close()
        if config.agent_socket or not isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            notes.append(f"the ssh-agent did not answer ({one_line(str(error) or type(error).__name__, 100)})")
        return []


class Secrets:
    """Where passwords and passphrases come from: given on the command line, remembered in this process, or asked for."""

    _passwords: ClassVar[dict[tuple[str, str, int], str]] = {}

    def __init__(
        self, host: HostConfig, password: str | None, passphrase: str | None, ask: Callable[[str], str] | None, shown: str
    ) -> None:
        self._key = (host.user, host.hostname, host.port)
        self._given = password
        self._passphrase = passphrase
        self._ask = None if host.batch else ask
        self._shown = shown
        self.prompts = host.prompts
        self.password_worked = False

    def __repr__(self) -> str:
        return "Secrets(…)"

    @property
    def can_ask(self) -> bool:
        return self._ask is not None

    @property
    def has_password(self) -> bool:
        return self._given is not None or self._key in self._passwords or self.can_ask

    def passphrase(self, path: str, attempt: int) -> str | None:
        if attempt == 0 and self._passphrase is not None:
            return self._passphrase
        return self.ask(f"Passphrase for {path}: ")

    def password(self, attempt: int, prompt: str = "") -> str | None:
        """What was given or worked before comes first; None when there's nothing more."""
        known = [text for text in (self._given, self._passwords.get(self._key)) if text is not None]
        if attempt < len(known):
            return known[attempt]
        return self.ask(prompt or f"{self._shown}'s password: ") if attempt - len(known) < self.prompts else None

    def worked(self, password: str) -> None:
        self._passwords[self._key] = password
        self.password_worked = True

    def ask(self, prompt: str) -> str | None:
        if self._ask is None:
            return None
        try:
            return self._ask(prompt)
        except EOFError:
            raise AuthenticationFailed("nothing was entered", host=self._shown, step="login") from None
