"""What ssh says, as our errors; what it asks, answered with what fab was given."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from remote.errors import (
    AuthenticationFailed,
    ConnectionLost,
    HostKeyRefused,
    RemoteError,
    StartsOrEnds,
    Unreachable,
    UsageError,
)
from remote.link import session
from remote.ssh import askpass
from remote.ssh.askpass import Answers
from remote.ssh.said import explain, refused_login
from remote.ssh.target import Target
from tests.unit.test_ssh import BOX

SAID = [
    (
        "ssh: Could not resolve hostname bxo: Name or service not known",
        "",
        Unreachable,
        "not known to the network",
    ),
    (
        "ssh: connect to host 10.0.0.7 port 2222: Connection refused",
        "",
        Unreachable,
        "refuses connections",
    ),
    (
        "ssh: connect to host 10.0.0.7 port 2222: Connection timed out",
        "",
        Unreachable,
        "did not answer for 30 s",
    ),
    ("ssh: connect to host 10.0.0.7 port 2222: No route to host", "", Unreachable, "no route"),
    (
        "Connection timed out during banner exchange\nConnection to 10.0.0.7 port 2222 timed out",
        "",
        Unreachable,
        "said nothing for 30 s",
    ),
    (
        (
            "kex_exchange_identification: Connection closed by remote host\nConnection closed by"
            " 10.0.0.7"
        ),
        "",
        Unreachable,
        "MaxStartups",
    ),
    (
        (
            "Unable to negotiate with 10.0.0.7 port 2222: no matching cipher found. Their offer:"
            " aes256-cbc"
        ),
        "",
        Unreachable,
        "outdated",
    ),
    (
        (
            "channel 0: open failed: connect failed: Connection refused\n"
            "stdio forwarding failed\n"
            "Connection closed by UNKNOWN port 65535"
        ),
        "",
        Unreachable,
        "jump host can't reach",
    ),
    (
        "Connection closed by UNKNOWN port 65535",
        "nc: HTTP/1.1 407 Proxy Authentication Required",
        Unreachable,
        "login of its own",
    ),
    ("Connection closed by UNKNOWN port 65535", "no way out", Unreachable, "no way out"),
    (
        "Connection timed out during banner exchange\nConnection to UNKNOWN port 65535 timed out",
        "",
        Unreachable,
        "jump host made no connection for 30 s",
    ),
    (
        (
            "@@@@@@@\n"
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n"
            "Offending ED25519 key in /home/me/my hosts:3\n"
            "Host key for [10.0.0.7]:2222 has changed and you have requested strict checking.\n"
            "Host key verification failed."
        ),
        "",
        HostKeyRefused,
        "/home/me/my hosts:3",
    ),
    (
        (
            "No ED25519 host key is known for [10.0.0.7]:2222 and you have requested strict"
            " checking.\nHost key verification failed."
        ),
        "",
        HostKeyRefused,
        "not known here",
    ),
    (
        "Host key ED25519 SHA256:x revoked by file /x\nHost key verification failed.",
        "",
        HostKeyRefused,
        "revoked",
    ),
    (
        "me@10.0.0.7: Permission denied (publickey,password).",
        "Maths cluster. Ask the help desk.",
        AuthenticationFailed,
        "Maths cluster",
    ),
    (
        "Received disconnect from 10.0.0.7 port 2222:2: Too many authentication failures",
        "",
        AuthenticationFailed,
        "too many keys",
    ),
    (
        "Connection closed by 10.0.0.7 port 2222",
        "The cluster is down for maintenance until Friday.",
        AuthenticationFailed,
        "until Friday",
    ),
    (
        "Connection closed by 10.0.0.7 port 2222",
        "System is going down. Unprivileged users are not permitted to log in anymore.",
        StartsOrEnds,
        "System is going down",
    ),
    (
        "Connection closed by 10.0.0.7 port 2222",
        "Your account has expired; please contact your system administrator.",
        AuthenticationFailed,
        "has expired",
    ),
    ("Connection closed by 10.0.0.7 port 2222", "", ConnectionLost, "lost during the login"),
    (
        'Authenticated to box using "publickey".\nTimeout, server 10.0.0.7 not responding.',
        "",
        ConnectionLost,
        "no answer for 30 s",
    ),
    (
        'Authenticated to box using "publickey".\nclient_loop: send disconnect: Broken pipe',
        "",
        ConnectionLost,
        "Broken pipe",
    ),
    ("command-line line 0: Bad configuration option: sesiontype", "", UsageError, "ssh_config"),
    (
        'Authenticated using "publickey" with partial success.\n'
        "me@10.0.0.7: Permission denied (keyboard-interactive).",
        "",
        AuthenticationFailed,
        "asks for more than a key",
    ),
]


@pytest.mark.parametrize(("log", "errors", "kind", "words"), SAID)
def test_what_ssh_says_is_one_line_with_its_own_words_in_it(
    log: str, errors: str, kind: type[RemoteError], words: str
) -> None:
    found = explain(log, errors.encode(), BOX, Target("box"))
    assert type(found) is kind and words in str(found) and "\n" not in str(found), found


def test_a_server_that_boots_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what waits for a run or mirrors it, through the night."""
    monkeypatch.setattr(session, "PAUSES_S", (0.0,))
    notes = list[str]()
    project: Any = None
    display: Any = SimpleNamespace(note=notes.append)
    answers = iter(
        [refused_login("System is booting up. Please come back later.", Target("box")), None]
    )

    def ask() -> str:
        if error := next(answers):
            raise error
        return "finished"

    waiting = session.Session(Target("box"), project, display)
    assert waiting.patiently(ask, "the run goes on") == "finished"
    assert "System is booting up" in notes[0] and "the run goes on" in notes[0]
    with pytest.raises(AuthenticationFailed, match="closed until Friday"):
        answers = iter([refused_login("The cluster is closed until Friday.", Target("box"))])
        waiting.patiently(ask, "the run goes on")


def test_a_remedy_can_be_typed() -> None:
    changed = (
        "REMOTE HOST IDENTIFICATION HAS CHANGED\n"
        "Offending ED25519 key in /h/known hosts:3\n"
        "Host key verification failed."
    )
    assert 'ssh-keygen -f "/h/known hosts" -R "[10.0.0.7]:2222"' in str(
        explain(changed, b"", BOX, Target("box"))
    )
    unknown = explain("Host key verification failed.", b"", BOX, Target("me@10.0.0.7:2222"))
    assert "accept it once: ssh -p 2222 me@10.0.0.7" in str(unknown)
    # An alias has its port and its jump hosts in ssh_config.
    unknown = explain("Host key verification failed.", b"", BOX, Target("box", ssh_config="a b"))
    assert "accept it once: ssh -F 'a b' box" in str(unknown)
    denied = explain("me@box: Permission denied (publickey).", b"", BOX, Target("me@box:2222"))
    assert str(denied).endswith("fab -H me@box:2222 setup-key")
    expired = refused_login("Your password has expired.", Target("me@box:2222"))
    assert str(expired).endswith("ssh -t -p 2222 me@box")


def test_what_a_jump_host_says_is_of_the_jump_host() -> None:
    closed = "Connection closed by UNKNOWN port 65535"
    changed = (
        b"debug1: a step\n"
        b"Offending ED25519 key in /h/known:1\n"
        b"Host key for [10.0.0.9]:2200 has changed and you have requested strict checking.\n"
    )
    found = str(explain(closed, changed, BOX, Target("box")))
    assert "on the way there: the server's key has CHANGED" in found
    assert 'ssh-keygen -f "/h/known" -R "[10.0.0.9]:2200"' in found
    denied = str(explain(closed, b"me@hop: Permission denied (publickey).", BOX, Target("box")))
    assert "on the way there: permission denied" in denied and "setup-key" not in denied
    for said, where in (
        (b"ssh: connect to host 10.0.0.9 port 22: Connection refused", "10.0.0.9 port 22 refuses"),
        (b"ssh: Could not resolve hostname hop: Name or service not known", "the name hop is not"),
    ):
        assert where in str(explain(closed, said, BOX, Target("box")))


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("me@10.0.0.7's password: ", "hunter2"),
        ("me@box's password: ", "hunter2"),
        ("(me@10.0.0.7) Password: ", "hunter2"),
        ("Password: ", "hunter2"),
        ("me@newton's password: ", "hunter2"),
        ("Password for me@box:", "hunter2"),
        ("(me@10.0.0.7) Password for me@box.lan:", "hunter2"),
        ("(me@10.0.0.7) LDAP Password: ", "hunter2"),
        ("密码：", "hunter2"),
        ("(me@10.0.0.7) Passwort: ", "hunter2"),
        ("Mot de passe : ", "hunter2"),
        ("Dynamic password: ", None),
        ("(me@10.0.0.7) SMS password: ", None),
        ("动态密码：", None),
        ("Password for me@jump:", None),
        ("me@jump.example.org's password: ", None),
        ("(me@10.0.0.7) Enter your one-time password: ", None),
        ("(me@10.0.0.7) Verification code (or backup password): ", None),
        ("(me@10.0.0.7) New password: ", None),
        ("Are you sure you want to continue connecting (yes/no/[fingerprint])? ", None),
        ("Enter passphrase for key '/home/me/.ssh/id_rsa': ", "hunter3"),
    ],
)
def test_a_stored_password_answers_the_password_prompt_alone_and_once(
    prompt: str, wanted: str | None
) -> None:
    given = Target("box", password="hunter2", passphrase="hunter3", interactive=False)
    box = replace(BOX, name="newton") if "newton" in prompt else BOX
    answers = Answers(given, box)
    assert answers.answer(prompt) == wanted
    assert answers.answer(prompt) is None


def test_another_prompt_for_the_password_is_not_answered_as_well() -> None:
    answers = Answers(Target("box", password="hunter2", interactive=False), BOX)
    assert answers.answer("Password: ") == "hunter2"
    assert answers.answer("me@box's password: ") is None


def test_what_a_server_asks_stays_out_of_the_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, bool]] = []

    def person(prompt: str, echo: bool) -> str:
        asked.append((prompt, echo))
        return "1"

    monkeypatch.setattr(askpass, "ask_person", person)
    answers = Answers(Target("box", password="hunter2", interactive=True), BOX)
    prompts = [("Password: ", False), ("Code: ", False), ("\x1b[31mOption (1-2): ", True)]
    assert answers.reply("Duo", "Choose:\n 1. push\x1b[31m\n", prompts) == ["hunter2", "1", "1"]
    mine = "(me@10.0.0.7)"
    assert asked == [(f"{mine} Code: ", False), (f"{mine} Option (1-2): ", True)]
    told = capsys.readouterr()
    assert told.out == "" and told.err == "Duo\nChoose:\n 1. push\n"
    nobody = Answers(Target("box", interactive=False), BOX)
    assert nobody.reply("Duo", "Choose:", [("Code: ", False)]) == [""] and len(asked) == 2
    assert capsys.readouterr() == ("", "")
