"""What is said to ssh and what is made of its words; the logins themselves are in tests/server."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from remote.errors import UsageError
from remote.ssh import openssh
from remote.ssh.askpass import Askpass
from remote.ssh.openssh import connection_options, control_path, host_words
from remote.ssh.target import Host, Spec, Target, parse_spec

BOX = Host("box", "me", "10.0.0.7", 2222)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("box", Spec("box")),
        (" me@box:22 ", Spec("box", "me", 22)),
        ("a@b@box", Spec("box", "a@b")),
        ("DOM\\me@box", Spec("box", "DOM\\me")),
        ("[::1]:2222", Spec("::1", None, 2222)),
        ("me@fe80::1%eth0", Spec("fe80::1%eth0", "me")),
        ("ssh://me@box:41022/", Spec("box", "me", 41022)),
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
        "-oProxyCommand=x",
        "me@-x",
        "-l@box",
        "box:",
        "box:0",
        "box:70000",
        "a:b:c",
        "box;ls",
        "bo x",
        "a,b",
        "$(x)",
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_spec(text)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("me@10.0.0.1 -p 22", "type -H me@10.0.0.1:22 in its place"),
        ("ssh -p 22 me@box -L 80:localhost:80", "type -H me@box:22 in its place"),
        ("ssh -i 'a key' -oPort=22 -l me box", "type -H me@box:22 -i 'a key' in its place"),
        ("ssh -p 22 me@fe80::1", "type -H me@[fe80::1]:22 in its place"),
        ("ssh -J gate me@box", "write user@host, user@host:port or [address]:port"),
        ("me@box：22，b", "type -H me@box:22,b in its place"),
    ],
)
def test_what_was_copied_is_told_as_it_is_written_here(text: str, remedy: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_spec(text)
    assert refused.value.remedy == remedy


@pytest.mark.parametrize("text", ["me:hunter2@box", "ssh://me:hun@ter2@box", "me:hunter2@box -p 2"])
def test_a_password_is_refused_without_a_word_of_it(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_spec(text)
    assert "hun" not in str(refused.value) and "ter2" not in str(refused.value)


def test_secrets_do_not_show() -> None:
    goal = Target("box", password="hunter2", passphrase="hunter3")
    assert "hunter" not in repr(goal) and "hunter" not in str(host_words(goal))


class TestOptions:
    def test_nobody_to_ask_means_batch_mode(self) -> None:
        assert connection_options(Target("box", interactive=False), {})["BatchMode"] == "yes"
        assert "BatchMode" not in connection_options(Target("box", interactive=True), {})
        assert "BatchMode" not in connection_options(
            Target("box", interactive=False, password="x"), {}
        )

    def test_a_login_that_waits_for_a_person_is_not_cut(self) -> None:
        """ssh's words about a living server bound the login, too."""
        for timeout_s in (1.0, 2.5, 10.0, 30.0, 100.0):
            options = connection_options(Target("box", timeout_s=timeout_s), {})
            interval = int(options["ServerAliveInterval"])
            assert 150 <= interval * int(options["ServerAliveCountMax"]) <= 200
            assert interval <= max(1, timeout_s / 3)

    def test_a_proxy_has_the_time_of_a_person_where_one_is_there(self) -> None:
        proxied = {"proxyjump": "hop"}
        for asked, found, limit in (
            (True, proxied, "150"),
            (False, proxied, "30"),
            (True, {"proxyjump": "none"}, "30"),
        ):
            options = connection_options(Target("box", interactive=asked), found)
            assert options["ConnectTimeout"] == limit

    def test_the_users_own_master_is_used_and_none_of_ours_made(self) -> None:
        options = connection_options(
            Target("box", stay_s=600),
            {"controlpath": "/x/%C", "controlmaster": "auto", "controlpersist": "60"},
        )
        assert not {"ControlPath", "ControlMaster", "ControlPersist"} & set(options)
        for found in (
            {"controlmaster": "ask", "controlpersist": "yes"},
            # Made by our command, it would end with it, and so would all that goes over it.
            {"controlmaster": "auto", "controlpersist": "no"},
        ):
            asking = connection_options(
                Target("box", stay_s=600), {"controlpath": "/x/%C", **found}
            )
            assert asking["ControlMaster"] == "no" and "ControlPath" not in asking

    def test_keywords_that_an_old_ssh_does_not_know_are_left_out(self) -> None:
        assert "sessiontype" not in connection_options(Target("box"), {})
        assert (
            connection_options(Target("box"), {"sessiontype": "none"})["sessiontype"] == "default"
        )

    def test_another_key_or_configuration_is_another_login(self, tmp_path: Path) -> None:
        box, usual = Target("box"), {"host": "box", "identityfile": "~/.ssh/id_rsa"}
        paths = {
            control_path(box, usual),
            control_path(box, {**usual, "identityfile": "a\n~/.ssh/id_rsa"}),
            control_path(Target("box", ssh_config=str(tmp_path / "c")), usual),
        }
        assert len(paths) == 3 and None not in paths
        assert control_path(Target("me@box"), {**usual, "host": "alias"}) in paths
        folder = Path(str(paths.pop())).parent
        assert folder.stat().st_mode & 0o777 == 0o700 and folder.stat().st_uid == os.getuid()

    def test_a_folder_that_others_may_enter_is_not_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        short = Path("/tmp") / f"x{os.getpid()}"
        short.mkdir()
        (short / f"remote-{os.getuid()}").mkdir(mode=0o755)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
        try:
            assert not str(control_path(Target("box"), {})).startswith(str(short))
        finally:
            (short / f"remote-{os.getuid()}").rmdir()
            short.rmdir()

    @pytest.mark.parametrize("place", ["a b", "a%h", 'a"', "${HOME}"])
    def test_a_folder_that_ssh_would_read_otherwise_is_not_used(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with tempfile.TemporaryDirectory(prefix=place, dir="/tmp") as folder:
            monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
            monkeypatch.setattr(openssh, "LONGEST_PLACE", 40)
            assert str(control_path(Target("box"), {})).startswith(f"/tmp/remote-{os.getuid()}/")


def test_a_temporary_folder_with_a_long_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket has no room for it."""
    long = tmp_path / ("x" * 110)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    asking = Askpass(Target("box", password="hunter2"), BOX)
    asking.close()
    assert not [*long.iterdir()]
