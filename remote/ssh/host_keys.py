"""Is this the server that we know? Reads known_hosts as OpenSSH does and decides; asks and remembers where that is allowed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remote.errors import HostKeyRefused
from remote.ssh.ssh_config import HostConfig

ALGORITHMS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256")
"""Signatures of host keys that we can check, best first."""
REVOKED, AUTHORITY = "@revoked", "@cert-authority"
_accepted: dict[tuple[str, int], bytes] = {}
"""Keys that a person accepted in this process: a reconnect doesn't ask again where nothing could be written."""


@dataclass(frozen=True)
class KnownKey:
    """One line of a known_hosts file that speaks about our host."""

    file: str
    line: int
    marker: str
    kind: str
    blob: bytes = field(repr=False)

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Known:
    """What all files say about a host; `portless` holds what they say about its name without the port."""

    names: tuple[str, ...]
    keys: tuple[KnownKey, ...] = ()
    portless: tuple[KnownKey, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """`answer` is known, unknown, changed, revoked or authority (only a certificate authority is known)."""

    answer: str
    entry: KnownKey | None = None


def lookup_name(hostname: str, port: int) -> str:
    return hostname.lower() if port == 22 else f"[{hostname.lower()}]:{port}"


def parse_known_hosts(text: str, file: str, name: str) -> list[KnownKey]:
    """The lines about `name`; notes, broken lines and keys that don't decode are passed over, as OpenSSH does."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        parts = line.split()
        marker = parts.pop(0) if parts and parts[0].startswith("@") else ""
        if len(parts) < 3 or parts[0].startswith("#") or marker not in ("", REVOKED, AUTHORITY):
            continue
        blob = _decode(parts[1], parts[2])
        if blob is not None and host_matches(parts[0], name):
            found.append(KnownKey(file, number, marker, parts[1], blob))
    return found


def _decode(kind: str, text: str) -> bytes | None:
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    inner = blob[4 : 4 + int.from_bytes(blob[:4], "big")]
    return blob if len(blob) > 4 and inner == kind.encode() else None


def host_matches(field_text: str, name: str) -> bool:
    """`a,*.b,!c.b` or a hashed `|1|salt|hash`; `name` is lower-case, with its port if it isn't 22."""
    if field_text.startswith("|"):
        parts = field_text.split("|")
        if len(parts) != 4 or parts[1] != "1":
            return False
        try:
            salt, wanted = base64.b64decode(parts[2]), base64.b64decode(parts[3])
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), wanted)
    hit = False
    for pattern in field_text.lower().split(","):
        if _wildcard(pattern.removeprefix("!"), name):
            if pattern.startswith("!"):
                return False
            hit = True
    return hit


def _wildcard(pattern: str, name: str) -> bool:
    expression = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in re.sub(r"\*+", "*", pattern))
    return bool(pattern) and re.fullmatch(expression, name, re.DOTALL) is not None


def read_known(config: HostConfig) -> Known:
    """Everything known about the host, by its alias or its real name."""
    name = config.host_key_alias.lower() if config.host_key_alias else lookup_name(config.hostname, config.port)
    plain = None if config.host_key_alias or config.port == 22 else config.hostname.lower()
    keys: list[KnownKey] = []
    portless: list[KnownKey] = []
    for file in (*config.known_hosts, *config.global_known_hosts):
        try:
            text = Path(file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        keys += parse_known_hosts(text, file, name)
        if plain is not None:
            portless += parse_known_hosts(text, file, plain)
    return Known((name,), tuple(keys), tuple(portless))


def judge(known: Known, blob: bytes) -> Verdict:
    """The answer that OpenSSH gives with the same lines."""
    for entry in known.keys:
        if entry.marker == REVOKED and entry.blob == blob:
            return Verdict("revoked", entry)
    plain = [entry for entry in known.keys if not entry.marker]
    for entry in plain:
        if entry.blob == blob:
            return Verdict("known", entry)
    if plain:
        kind = _kind(blob)
        return Verdict("changed", next((entry for entry in plain if entry.kind == kind), plain[0]))
    # A key that is known for the host's bare name serves its other ports too; a different one says nothing about them.
    if any(entry.marker == REVOKED and entry.blob == blob for entry in known.portless):
        return Verdict("revoked", next(entry for entry in known.portless if entry.marker == REVOKED and entry.blob == blob))
    for entry in known.portless:
        if not entry.marker and entry.blob == blob:
            return Verdict("known", entry)
    authority = next((entry for entry in known.keys if entry.marker == AUTHORITY), None)
    return Verdict("authority", authority) if authority else Verdict("unknown")


def _kind(blob: bytes) -> str:
    return blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode("ascii", "replace")


def preferred_algorithms(known: Known, configured: Sequence[str] = ()) -> tuple[str, ...]:
    """Signature algorithms to offer: those of known keys first, so that a second key of the server is no false alarm."""
    usable = [name for name in configured if name in ALGORITHMS] if configured else list(ALGORITHMS)
    plain = [entry for entry in (known.keys or known.portless) if not entry.marker]
    kinds = {entry.kind for entry in plain}

    def is_known(name: str) -> bool:
        return ("ssh-rsa" if name.startswith("rsa-") else name) in kinds

    return tuple(sorted(usable or ALGORITHMS, key=lambda name: not is_known(name)))


def fingerprint(blob: bytes) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def check(config: HostConfig, known: Known, blob: bytes, confirm: Callable[[str], bool] | None) -> None:
    """Returns when the key may be trusted; `confirm` is None where nobody can be asked. Raises HostKeyRefused."""
    if config.revoked_host_keys and is_revoked(config.revoked_host_keys, blob):
        raise HostKeyRefused(
            f"the server's key {fingerprint(blob)} is listed in {config.revoked_host_keys}", host=config.name, step="host key"
        )
    verdict = judge(known, blob)
    if verdict.answer == "known":
        return
    if verdict.answer == "unknown":
        _meet(config, known, blob, confirm)
        return
    assert verdict.entry is not None
    shown = f"{_kind(blob)} {fingerprint(blob)}"
    if verdict.answer == "revoked":
        raise HostKeyRefused(
            f"the server's key ({shown}) is marked as revoked in {verdict.entry.place}", host=config.name, step="host key"
        )
    if verdict.answer == "authority":
        raise HostKeyRefused(
            f"{verdict.entry.place} trusts this host by a certificate authority, and host certificates can't be checked here",
            host=config.name,
            step="host key",
            remedy=f"add the host's own key beside it, after comparing its fingerprint {fingerprint(blob)}: {_scan(config)}",
        )
    raise HostKeyRefused(
        f"THE SERVER'S KEY HAS CHANGED: it now shows {shown}, but {verdict.entry.place} has another one. "
        "The machine was reinstalled, or somebody stands between you and it",
        host=config.name,
        step="host key",
        remedy=f"if you know that it was reinstalled: ssh-keygen -f {_quote(verdict.entry.file)} -R {_quote(known.names[0])}",
    )


def _meet(config: HostConfig, known: Known, blob: bytes, confirm: Callable[[str], bool] | None) -> None:
    key = (known.names[0], config.port)
    if _accepted.get(key) == blob:
        return
    if config.strict == "ask" and confirm is not None and not config.batch:
        kind = _kind(blob).removeprefix("ssh-").removeprefix("ecdsa-sha2-").upper()
        if not confirm(
            f"{known.names[0]} is not known yet. Its {kind} key has the fingerprint\n  {fingerprint(blob)}\nTrust it and connect?"
        ):
            raise HostKeyRefused("the server's key was not accepted", host=config.name, step="host key")
    elif config.strict in ("yes", "ask"):
        raise HostKeyRefused(
            f"the server's key ({_kind(blob)} {fingerprint(blob)}) is not known",
            host=config.name,
            step="host key",
            remedy=f"log in once by hand and compare the fingerprint: ssh{_port(config)} {config.user}@{config.hostname}",
        )
    _accepted[key] = blob
    if config.known_hosts:
        remember(Path(config.known_hosts[0]), known.names[0], blob, config.hash_known_hosts)


def remember(file: Path, name: str, blob: bytes, hashed: bool) -> bool:
    """Append one line, as ssh does. False when the file can't be written: the login goes on."""
    if hashed:
        salt = secrets.token_bytes(20)
        digest = hmac.new(salt, name.encode(), "sha1").digest()
        name = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
    line = f"{name} {_kind(blob)} {base64.b64encode(blob).decode()}\n".encode()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b", buffering=0) as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - 1))
            unfinished = size > 0 and handle.read(1) != b"\n"
            handle.write(b"\n" + line if unfinished else line)
    except OSError:
        return False
    return True


def is_revoked(file: str, blob: bytes) -> bool:
    """RevokedHostKeys: public keys one a line. What can't be read revokes everything, as in OpenSSH."""
    try:
        data = Path(file).read_bytes()
    except OSError:
        return True
    if data.startswith(b"SSHKRL\n"):
        return _in_revocation_list(file, blob)
    return base64.b64encode(blob) in data.split()


def _in_revocation_list(file: str, blob: bytes) -> bool:
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        public = Path(folder, "key.pub")
        public.write_text(f"{_kind(blob)} {base64.b64encode(blob).decode()}\n")
        try:
            return (
                subprocess.run(
                    ["ssh-keygen", "-Q", "-f", file, str(public)], capture_output=True, timeout=10, check=False
                ).returncode
                != 0
            )
        except (OSError, subprocess.TimeoutExpired):
            return True


def _scan(config: HostConfig) -> str:
    return f"ssh-keyscan{_port(config)} {config.hostname} >> {_quote(next(iter(config.known_hosts), '~/.ssh/known_hosts'))}"


def _port(config: HostConfig) -> str:
    return "" if config.port == 22 else f" -p {config.port}"


def _quote(text: str) -> str:
    return text if re.fullmatch(r"[\w@%+=:,./~-]+", text) else f'"{text}"'
