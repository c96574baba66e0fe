"""What ssh says when it fails, as one of our errors: the cause in plain words, ssh's own line, what
to type next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from remote.errors import (
    AuthenticationFailed,
    ConnectionLost,
    HostKeyRefused,
    RemoteError,
    Unreachable,
    UsageError,
)
from remote.screen.text import one_line
from remote.ssh.target import Host, Target

NOISE = re.compile(
    r"^(Authenticated to |Transferred: |Bytes per second|debug|OpenSSH_|@+$|@ |Warning: Perm)"
)
PORT = "no SSH server listens there: check the port (user@host:port), or whether it still starts"
NAME = "check its spelling, the VPN, or HostName in ~/.ssh/config"
OFF = "the machine is off, or a firewall drops the connection"
HANGS = "the server hangs, or no SSH server listens there"
LIMIT = "it may limit logins (MaxStartups), block your address, or be no SSH server"
JUMP = "try it there by hand; its sshd must allow TCP forwarding"
PROXY = "give the ProxyCommand in ~/.ssh/config its user and password"
OLD = "update the server's OpenSSH, or allow what it offers for this host in ~/.ssh/config"
KEYS = "name the right one with -i, or set IdentityFile and IdentitiesOnly yes in ~/.ssh/config"
NO_KEY = "choose a key with -i, or put yours on the server: fab -H {host} setup-key"
ACCEPT = "compare its fingerprint and accept it once: ssh{port} {host}"
CHANGE = "log in once by hand and change it: ssh -t{port} {host}"
Refused = HostKeyRefused
CAUSES: tuple[tuple[str, type[RemoteError], str, str], ...] = (
    ("(?i)revoked", Refused, "the server's key is revoked", "ask whoever runs the server"),
    (
        "HAS CHANGED|Host key for .* has changed",
        Refused,
        "the server's key has CHANGED",
        "{forget}",
    ),
    (
        "key is known for|Host key verification failed",
        Refused,
        "the server's key is not known here",
        ACCEPT,
    ),
    (
        "Too many authentication",
        AuthenticationFailed,
        "the server stopped after too many keys",
        KEYS,
    ),
    (
        r"expired|change required|must change your",
        AuthenticationFailed,
        "the password or the account has expired",
        CHANGE,
    ),
    (
        "nologin|maintenance|System is (booting|going)",
        AuthenticationFailed,
        "the server lets nobody in at present",
        "",
    ),
    ("Permission denied", AuthenticationFailed, "permission denied", NO_KEY),
    (
        "Could not resolve|not known$",
        Unreachable,
        "the name {where} is not known to the network",
        NAME,
    ),
    (
        r"HTTP/\S+ 407|[Pp]roxy [Aa]uth",
        Unreachable,
        "the proxy on the way wants a login of its own",
        PROXY,
    ),
    (
        "stdio forwarding failed|open failed|prohibited",
        Unreachable,
        "the jump host can't reach {where}",
        JUMP,
    ),
    ("Connection refused", Unreachable, "{where} refuses connections", PORT),
    (
        "No route to host|unreachable|Network is down",
        Unreachable,
        "there is no route to {where}",
        "check the network and the VPN",
    ),
    (
        "during banner exchange",
        Unreachable,
        "{where} accepted the connection but then said nothing for {timeout:g} s",
        HANGS,
    ),
    ("[Tt]imed out|Timeout, server", Unreachable, "{where} did not answer for {timeout:g} s", OFF),
    (
        "Unable to negotiate|no matching",
        Unreachable,
        "{where} offers only outdated cryptography",
        OLD,
    ),
    (
        "kex_exchange|banner|MaxStartups|protocol version",
        Unreachable,
        "{where} closed the connection before the login",
        LIMIT,
    ),
    (
        r"Bad configuration|terminating, \d+ bad",
        UsageError,
        "ssh_config can't be used",
        "try `ssh{port} {host}` by hand",
    ),
)
"""What ssh says; the class; the cause in our words; what to do. The first that fits decides."""


def explain(log: str, errors: bytes, host: Host, target: Target) -> RemoteError:
    """The error behind ssh's exit code 255. `log`: ssh's own lines; `errors`: the server's and a
    ProxyCommand's."""
    lines = [
        line.strip() for line in log.splitlines() if line.strip() and not NOISE.search(line.strip())
    ]
    said = [line.strip() for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    logged_in = "Authenticated to " in log
    fill = _filler(log, host, target)
    if logged_in:
        silent = any("Timeout, server" in line for line in lines)
        text = f"no answer for {target.timeout_s:g} s" if silent else "the connection was lost"
        return ConnectionLost(
            _with(text, lines[-1:]), host=host.name, remedy="run the same command again"
        )
    for pattern, kind, cause, remedy in CAUSES:
        decisive = [line for line in [*lines, *said] if re.search(pattern, line)]
        if decisive or re.search(pattern, log):
            words = _words_of(kind, cause, decisive, lines, said)
            return kind(
                _with(fill(cause), words),
                host=host.name,
                step=_step(kind),
                remedy=fill(remedy) or None,
            )
    if "UNKNOWN port 65535" in log:
        text = "the ProxyCommand or jump host brought no connection"
        return Unreachable(
            _with(text, said[-2:] or lines[-1:]),
            host=host.name,
            step="connect",
            remedy="try `ssh` with this host by hand",
        )
    if said and lines:
        # A server that says something and hangs up means it.
        return AuthenticationFailed(
            _with("the server ended the login", said[-2:]), host=host.name, step="login"
        )
    text = "the connection was lost during the login"
    return ConnectionLost(
        _with(text, lines[-1:] or said[-1:]),
        host=host.name,
        step="login",
        remedy="run the same command again",
    )


def refused_login(said: str, host: str) -> AuthenticationFailed:
    """A server that lets somebody in only to say that it does not."""
    if "expired" in said or "change required" in said:
        text, remedy = (
            "the password or the account has expired",
            f"log in once by hand and change it: ssh -t {host}",
        )
    else:
        text, remedy = "the server lets nobody in at present", None
    return AuthenticationFailed(_with(text, [said]), host=host, step="login", remedy=remedy)


def _words_of(
    kind: type[RemoteError], cause: str, decisive: list[str], lines: list[str], said: list[str]
) -> list[str]:
    """The lines that decided; for a login refused also what the server says."""
    if kind is HostKeyRefused and "CHANGED" in cause:
        return [line for line in lines if line.startswith("Offending")] or decisive[-1:]
    if kind is AuthenticationFailed:
        notes = [
            line
            for line in lines
            if re.search(r"passphrase|identity file|no such identity|sign", line, re.I)
        ]
        return [*decisive[-1:], *(line for line in [*notes, *said[-2:]] if line not in decisive)]
    return decisive[-1:]


def _step(kind: type[RemoteError]) -> str | None:
    return {AuthenticationFailed: "login", Unreachable: "connect"}.get(kind)


def _with(cause: str, words: list[str]) -> str:
    inner = one_line("; ".join(dict.fromkeys(words)), 300)
    return f"{cause} ({inner})" if inner else cause


def _filler(log: str, host: Host, target: Target) -> Callable[[str], str]:
    port = "" if host.port in (None, 22) else f" -p {host.port}"
    config = f" -F {target.ssh_config}" if target.ssh_config else ""
    found = re.search(r"Offending \S+ key in (.+):\d+", log)
    known = f"[{host.hostname}]:{host.port}" if port else host.hostname
    file = f' -f "{found[1]}"' if found else ""
    values = {
        "where": f"{host.hostname or host.name} port {host.port or 22}",
        "host": shlex.quote(
            target.spec if config or not host.hostname else f"{host.user}@{host.hostname}"
        ),
        "port": config or port,
        "timeout": target.timeout_s,
        "forget": f'if it was reinstalled: ssh-keygen{file} -R "{known}"',
    }
    return lambda text: text.format(**values)
