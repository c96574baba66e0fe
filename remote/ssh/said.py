"""What ssh says when it fails, as one of our errors: the cause in plain words, ssh's own line, what
to type next."""

from __future__ import annotations

import re
from collections.abc import Callable

from remote.errors import (
    AuthenticationFailed,
    ConnectionLost,
    HostKeyRefused,
    RemoteError,
    StartsOrEnds,
    Unreachable,
    UsageError,
)
from remote.screen.text import one_line
from remote.ssh.target import Host, Target

NOISE = re.compile(
    r"^(Authenticated to |Transferred: |Bytes per second|debug|OpenSSH_|@+$|@ |Warning: Perm"
    r"|Killed by)"
)
PORT = "no SSH server listens there: check the port (user@host:port), or whether it still starts"
NAME = "check its spelling, the VPN, or HostName in ~/.ssh/config"
OFF = "the machine is off, or a firewall drops the connection"
HANGS = "the server hangs, or no SSH server listens there"
LIMIT = "it may limit logins (MaxStartups), block your address, or be no SSH server"
NETWORK = "check the network and the VPN"
PROXY_HANGS = "the ProxyCommand or jump host made no connection for {timeout:g} s"
HUNG_UP = "{where} closed the connection before the login"
BY_HAND = "try `ssh {ssh}` by hand"
JUMP = "try it there by hand; its sshd must allow TCP forwarding"
PROXY = "give the ProxyCommand in ~/.ssh/config its user and password"
OLD = "update the server's OpenSSH, or allow what it offers for this host in ~/.ssh/config"
KEYS = "name the right one with -i, or set IdentityFile and IdentitiesOnly yes in ~/.ssh/config"
NO_KEY = "choose a key with -i, or put yours on the server: fab -H {fab} setup-key"
MORE = (
    "it asks for more than a key: log in at a terminal, fab -H {fab} status, and that login is kept"
)
ACCEPT = "compare its fingerprint and accept it once: ssh {ssh}"
ADD = "StrictHostKeyChecking is yes: compare its fingerprint, and add it to known_hosts yourself"
CHANGE = "log in once by hand and change it: ssh -t {ssh}"
NO_SOCKET = "the ControlPath of ssh_config can't be made"
EXPIRED = "the password or the account has expired"
NOBODY = "the server lets nobody in at present"
BOOTS = "System is (booting|going)"
CAUSES: dict[type[RemoteError], tuple[tuple[str, str, str], ...]] = {
    HostKeyRefused: (
        ("(?i)revoked", "the server's key is revoked", "ask whoever runs the server"),
        ("HAS CHANGED|Host key for .* has changed", "the server's key has CHANGED", "{forget}"),
        (r"requested strict checking\.", "the server's key is not known here", ADD),
        ("key is known for|key verification failed", "the server's key is not known here", ACCEPT),
    ),
    StartsOrEnds: ((BOOTS, NOBODY, ""),),
    AuthenticationFailed: (
        ("Too many authentication", "the server stopped after too many keys", KEYS),
        ("expired|change required|must change your", EXPIRED, CHANGE),
        ("nologin|maintenance", NOBODY, ""),
        (r"with partial success\.", "permission denied", MORE),
        ("Permission denied", "permission denied", NO_KEY),
    ),
    Unreachable: (
        ("Could not resolve|not known$", "the name {name} is not known to the network", NAME),
        (r"HTTP/\S+ 407|[Pp]roxy [Aa]uth", "the proxy on the way wants a login of its own", PROXY),
        ("stdio forwarding|open failed|prohibited", "the jump host can't reach {where}", JUMP),
        ("Connection refused", "{where} refuses connections", PORT),
        ("No route to host|unreachable|Network is down", "there is no route to {where}", NETWORK),
        (r"banner exchange\s+Connection to UNKNOWN", PROXY_HANGS, BY_HAND),
        ("during banner exchange", "{where} answered, then said nothing for {timeout:g} s", HANGS),
        ("[Tt]imed out|Timeout, server", "{where} did not answer for {timeout:g} s", OFF),
        ("Unable to negotiate|no matching", "{where} offers only outdated cryptography", OLD),
        ("kex_exchange|banner|MaxStartups|protocol version", HUNG_UP, LIMIT),
    ),
    UsageError: (
        (r"Bad configuration|terminating, \d+ bad", "ssh_config can't be used", BY_HAND),
        ("unix_listener: cannot|bind to path", NO_SOCKET, "make its folder"),
    ),
}
"""For each class: what ssh says, the cause in our words, what to do. The first that fits is it."""
STEPS = {AuthenticationFailed: "login", StartsOrEnds: "login", Unreachable: "connect"}


def explain(log: str, errors: bytes, host: Host, target: Target) -> RemoteError:
    """The error behind ssh's exit code 255. `log`: ssh's own lines; `errors`: the server's and a
    ProxyCommand's."""
    lines = _lines(log)
    said = _lines(errors.decode("utf-8", "replace"))
    # So ssh names a host that its ProxyCommand did not reach.
    unreached = "UNKNOWN port 65535" in log
    fill = _filler("\n".join([*lines, *said]), host, target)
    if "Authenticated to " in log and "unix_listener: cannot" not in log:
        silent = any("Timeout, server" in line for line in lines)
        text = f"no answer for {target.timeout_s:g} s" if silent else "the connection was lost"
        return ConnectionLost(_with(text, lines[-1:]), host=host.name)
    for kind, causes in CAUSES.items():
        step = STEPS.get(kind)
        for pattern, cause, remedy in causes:
            decisive = [line for line in [*lines, *said] if re.search(pattern, line)]
            if decisive or re.search(pattern, log):
                by_others = unreached and decisive and not {*decisive} & {*lines}
                if by_others and kind in (HostKeyRefused, AuthenticationFailed):
                    cause = f"on the way there: {cause}"
                    remedy = BY_HAND if kind is AuthenticationFailed else remedy
                text = _with(fill(cause), _words_of(kind, decisive, lines, said))
                return kind(text, host=host.name, step=step, remedy=fill(remedy) or None)
    if unreached:
        text = _with("the ProxyCommand or jump host made no connection", said[-2:] or lines[-1:])
        return Unreachable(text, host=host.name, step="connect", remedy=fill(BY_HAND))
    if said and lines:  # a server that says something and hangs up means it
        text = _with("the server ended the login", said[-2:])
        return AuthenticationFailed(text, host=host.name, step="login")
    text = _with("the connection was lost during the login", lines[-1:] or said[-1:])
    return ConnectionLost(text, host=host.name, step="login")


def refused_login(said: str, target: Target) -> AuthenticationFailed:
    """A server that lets somebody in only to say that it does not."""
    if re.search(BOOTS, said):
        return StartsOrEnds(_with(NOBODY, [said]), host=target.spec, step="login")
    expired = "expired" in said or "change required" in said
    remedy = CHANGE.format(ssh=target.typed_for_ssh) if expired else None
    text = _with(EXPIRED if expired else NOBODY, [said])
    return AuthenticationFailed(text, host=target.spec, step="login", remedy=remedy)


def _lines(said: str) -> list[str]:
    return [line for text in said.splitlines() if (line := text.strip()) and not NOISE.search(line)]


def _words_of(
    kind: type[RemoteError], decisive: list[str], lines: list[str], said: list[str]
) -> list[str]:
    """The lines that decided; for a key that changed where the old one stands, for a login refused
    also what the server says."""
    if kind is HostKeyRefused:
        return [line for line in lines if line.startswith("Offending")] or decisive[-1:]
    if issubclass(kind, AuthenticationFailed):
        about_keys = re.compile("passphrase|identity file|no such identity|sign", re.I)
        notes = [line for line in lines if about_keys.search(line)]
        return [*decisive[-1:], *(line for line in [*notes, *said[-2:]] if line not in decisive)]
    return decisive[-1:]


def _with(cause: str, words: list[str]) -> str:
    inner = one_line("; ".join(dict.fromkeys(words)), 300)
    return f"{cause} ({inner})" if inner else cause


def _filler(said: str, host: Host, target: Target) -> Callable[[str], str]:
    """Of a jump host, where it is what ssh speaks of, its address."""
    offending = re.search(r"Offending \S+ key in (.+):\d+", said)
    changed = re.search(r"Host key for (\S+) has changed", said)
    met = re.search(r"connect to host (\S+) port (\d+)", said)
    unknown = re.search(r"Could not resolve hostname (\S+):", said)
    name, port = met.groups() if met else (host.hostname or host.name, host.port or 22)
    known = changed[1] if changed else f"[{name}]:{port}" if str(port) != "22" else name
    file = f' -f "{offending[1]}"' if offending else ""
    values = {
        "where": f"{name} port {port}",
        "name": unknown[1] if unknown else name,
        "fab": target.typed,
        "ssh": target.typed_for_ssh,
        "timeout": target.timeout_s,
        "forget": f'if it was reinstalled: ssh-keygen{file} -R "{known}"',
    }
    return lambda text: text.format(**values)
