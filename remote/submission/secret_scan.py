"""What must not be handed in: keys, tokens, webhook addresses, `.env` files, home directories in
settings. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from remote.release.code_files import is_for_secrets

SECRETS = {
    "private key": re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:\\n|\s)+[A-Za-z0-9+/=:, -]{30}"
    ),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60})"),
    "GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20}"),
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30}"),
    "API key": re.compile(r"\b(?:sk-[A-Za-z0-9_-]{20}|AIza[A-Za-z0-9_-]{35})"),
    "AWS key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "Slack token": re.compile(r"\bxox[abeprs]-[A-Za-z0-9-]{10}"),
    "Telegram token": re.compile(r"\b\d{8,10}:AA[A-Za-z0-9_-]{33}\b"),
    "ServerChan key": re.compile(r"\bSCT\d{3,}T[A-Za-z0-9]{20}"),
    "netrc entry": re.compile(r"\bmachine\s+\S+\s+login\s+\S+\s+password\s+\S"),
    "Weights & Biases key": re.compile(r"(?i)\bwandb[^\n]{0,40}['\"\s:=][0-9a-f]{40}\b"),
    "webhook address": re.compile(
        r"https?://(?:hooks\.slack\.com/services|open\.(?:feishu\.cn|larksuite\.com)/open-apis/bot|qyapi\.weixin\.qq\.com/cgi-bin/webhook"
        r"|oapi\.dingtalk\.com/robot|discord(?:app)?\.com/api/webhooks)/?[^\s'\"<>]{6}"
    ),
}
"""Forms that only a secret has. Searched for in the whole text: a key spans lines."""
LIKELY = {
    "password": re.compile(
        r"(?im)^[^#\n]*(?:\b|_)(?:password|passwd|passphrase|secret|(?:api|secret|access)_?key|(?:access|auth|api)_?token)"
        r"['\"]?\s*[:=]\s*['\"]?[^'\"\s${<]{6,}"
    ),
    "address with a password": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]+:[^\s/@'\"${]{3,}@"),
}
"""In settings and plain text alone: code speaks of such things without holding them."""
HOME = re.compile(
    r"(?:/home|/Users|/mnt/[a-z]/Users|[A-Za-z]:[\\/]{1,2}Users)[\\/]{1,2}[^\\/\s'\"<>:,;)]+"
)
SETTINGS = {".yaml", ".yml", ".json", ".toml", ".ini", ".cfg", ".conf", ".env", ".sh"}
PLAIN = {"", ".in", ".properties", ".txt"}
MOST_BYTES = 8 << 20


@dataclass(frozen=True)
class Finding:
    """`line` is 0 for the file as a whole. What was found is not repeated: this text may be
    logged."""

    path: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.path}{f':{self.line}' if self.line else ''}: {self.kind}"


def search(root: Path, paths: list[str]) -> list[Finding]:
    """Of the files `paths` (with `/`) below `root`. Files that are no text, or long, are known by
    their name alone."""
    return [finding for path in paths for finding in _search_file(root / path, path)]


def _search_file(file: Path, path: str) -> Iterator[Finding]:
    name = PurePosixPath(path).name
    if is_for_secrets(name) or name.endswith(".pem"):
        yield Finding(path, 0, "a file for secrets, by its name")
    if file.is_symlink() or file.stat().st_size > MOST_BYTES:
        return
    data = file.read_bytes()
    if b"\0" in data:
        return
    text = data.decode("utf-8", "replace")
    suffix = PurePosixPath(path).suffix.lower()
    wanted = {**SECRETS, **LIKELY} if suffix in PLAIN else SECRETS
    if suffix in SETTINGS or name.startswith(".env"):
        wanted = {**SECRETS, **LIKELY, "home directory": HOME}
    for kind, pattern in wanted.items():
        for match in pattern.finditer(text):
            yield Finding(path, text.count("\n", 0, match.start()) + 1, kind)


def without_home(text: str) -> str:
    """Home directories of people become ~; for files that we write ourselves."""
    return HOME.sub("~", text)
