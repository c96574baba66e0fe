"""Hosts as typed, and what ssh_config makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.errors import UsageError
from remote.ssh.connection import Connection, Target
from remote.ssh.ssh_config import DEFAULT_IDENTITIES, Spec, build, expand, parse_options, parse_spec, read_without_ssh, split_paths


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("box", Spec("box")),
        ("me@box", Spec("box", "me")),
        ("me@box:2222", Spec("box", "me", 2222)),
        ("box:2222", Spec("box", None, 2222)),
        ("10.0.0.7", Spec("10.0.0.7")),
        ("[::1]:2222", Spec("::1", None, 2222)),
        ("[::1]", Spec("::1")),
        ("::1", Spec("::1")),
        ("me@fe80::1", Spec("fe80::1", "me")),
        ("me@[fe80::1%eth0]:22", Spec("fe80::1%eth0", "me", 22)),
        ("me@corp.example@box", Spec("box", "me@corp.example")),
        ("ssh://me@box:2222/", Spec("box", "me", 2222)),
        (" box ", Spec("box")),
    ],
)
def test_a_host_is_taken_apart(text: str, wanted: Spec) -> None:
    assert parse_spec(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@box",
        "me@",
        "box:",
        "box:0",
        "box:65536",
        "box:x",
        "box:٣",
        "-oProxyCommand=x",
        "me@-x",
        "a b",
        "a:b:c",
        "[::1",
        "$(x)",
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_spec(text)


@given(st.text(max_size=40))
def test_any_text_is_a_host_or_refused(text: str) -> None:
    try:
        spec = parse_spec(text)
    except UsageError:
        return
    assert spec.host and not spec.host.startswith("-") and not set(spec.host) & set(" '\"`$;&|<>\n\\")


def test_the_output_of_ssh_is_understood() -> None:
    text = """
user me
hostname gpu.example.org
port 2222
identityfile ~/.ssh/a key
identityfile /keys/%r@%h
identitiesonly yes
userknownhostsfile /home/a b/known_hosts /home/a b/known_hosts2
globalknownhostsfile /etc/ssh/ssh_known_hosts
stricthostkeychecking true
proxyjump one,two@three:4
proxycommand none
hostkeyalias cluster
connecttimeout 7
serveraliveinterval 0
addressfamily inet6
passwordauthentication no
hashknownhosts yes
"""
    config = build(Spec("box", None, None), parse_options(text))
    assert (config.name, config.hostname, config.user, config.port) == ("box", "gpu.example.org", "me", 2222)
    assert config.identity_files[0].endswith("/.ssh/a key") and config.identity_files[1] == "/keys/me@gpu.example.org"
    assert config.known_hosts == ("/home/a b/known_hosts", "/home/a b/known_hosts2")
    assert config.jumps == ("one", "two@three:4") and config.proxy_command is None
    assert (config.strict, config.host_key_alias, config.connect_timeout_s, config.keepalive_s) == ("yes", "cluster", 7.0, 15)
    assert config.identities_only and config.hash_known_hosts and config.family == "inet6"
    assert config.methods == ("publickey", "keyboard-interactive")


def test_an_identity_of_the_command_line_replaces_only_the_default_ones() -> None:
    defaults = {"identityfile": list(DEFAULT_IDENTITIES)}
    assert build(Spec("box", "me"), defaults, ("/k/mine",)).identity_files == ("/k/mine",)
    assert build(Spec("box", "me"), {"identityfile": ["/k/theirs"]}, ("/k/mine",)).identity_files == ("/k/mine", "/k/theirs")


def test_no_known_hosts_file_is_none() -> None:
    assert build(Spec("box", "me"), {"userknownhostsfile": ["/dev/null"], "globalknownhostsfile": ["none"]}).known_hosts == ()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/a /b", ["/a", "/b"]),
        ("/a b/c ~/d e", ["/a b/c", "~/d e"]),
        ('"/a b"', ["/a b"]),
        (r"C:\x y\known_hosts __PROGRAMDATA__\ssh/k", [r"C:\x y\known_hosts", r"__PROGRAMDATA__\ssh/k"]),
        ("none", ["none"]),
    ],
)
def test_lists_of_files_are_taken_apart(text: str, wanted: list[str]) -> None:
    assert split_paths(text) == wanted


def test_tokens_are_expanded_once() -> None:
    assert expand("%h:%p %% %x", {"h": "%p", "p": "22", "%": "%"}) == "%p:22 % %x"


def test_files_are_read_where_there_is_no_ssh(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host *\n  User late\n  Port 99 # a note\n")
    (tmp_path / "config").write_text(
        f"""# a note
Host box !nobox
    HostName = "gpu.example.org"
    User me
    ForwardAgent ~/agent socket
    IdentityFile "~/a key"
Match exec "false"
    Port 1
Match all
    IdentityFile /k/second
Include {tmp_path}/mo*
Host *.other
    Port 2
  nonsense
"""
    )
    config = build(Spec("box"), read_without_ssh(Spec("box"), str(tmp_path / "config")))
    assert (config.hostname, config.user, config.port) == ("gpu.example.org", "me", 99)
    assert config.identity_files[0].endswith("/a key") and config.identity_files[1] == "/k/second"


def test_secrets_never_show_themselves() -> None:
    target = Target("box", password="hunter2", passphrase="hunter3")
    assert "hunter" not in repr(target) + repr(Connection(target))
