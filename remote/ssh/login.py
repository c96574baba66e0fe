"""Who makes the login: the system's ssh, or paramiko where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from remote.errors import UsageError
from remote.ssh.connection import Connection
from remote.ssh.target import Target, parse_spec


def connect(target: Target) -> Connection:
    """Raises UsageError where a missing ssh is asked for."""
    if target.program != "paramiko" and shutil.which("ssh"):
        from remote.ssh.openssh import OpenSSH

        return OpenSSH(target)
    if target.program == "openssh":
        text = "remote.ssh is openssh, and there is no ssh program here"
        raise UsageError(text, host=target.spec, remedy="install the OpenSSH client")
    from remote.ssh.fallback import Paramiko

    return Paramiko(target)


def each_once(targets: Sequence[Target]) -> Iterator[Target]:
    """Without those that lead to one before them: `a`, `me@a` and `a:22`, where ssh_config says no
    more of a."""
    hosts = [host_of(target) for target in targets]
    known = set()
    for target, host in zip(targets, hosts, strict=True):
        way = way_to(target) if hosts.count(host) > 1 else host
        if way not in known:
            known.add(way)
            yield target


def host_of(target: Target) -> str:
    try:
        return parse_spec(target.spec).host
    except UsageError:  # told by who goes there
        return target.spec


def way_to(target: Target) -> tuple[str | int | None, ...] | str:
    """Host, user and port."""
    try:
        spec = parse_spec(target.spec)
        if not shutil.which("ssh"):
            return spec.host, spec.user, spec.port or 22
        from remote.ssh.openssh import read_settings

        found = read_settings(target)
        return spec.host, found.get("user"), found.get("port")
    except UsageError:
        return target.spec
