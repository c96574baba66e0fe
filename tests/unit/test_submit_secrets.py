"""Handing in: secrets in what would become public."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from remote.errors import UsageError
from remote.submission import secret_scan
from tests.support.desk import Desk
from tests.support.project import REPOSITORY

pytestmark = pytest.mark.usefixtures("nobody")


SECRETS = {
    "private key": (
        "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n"
    ),
    "GitHub token": "t = 'ghp_" + "a1B2" * 9 + "'",
    "Hugging Face token": "hf_" + "aB3" * 10,
    "AWS key": "AKIA" + "ABCD" * 4,
    "Slack token": "xoxb-" + "1234567890",
    "API key": "sk-" + "a" * 24,
    "Telegram token": "12345678:" + "AA" + "b" * 33,
    "ServerChan key": "SCT" + "12345T" + "aB3" * 9,
    "netrc entry": "machine " + "host login me " + "password x",
    "Weights & Biases key": "wandb.login(key='" + "0f" * 20 + "')",
    "webhook address": "https://open.feishu" + ".cn/open-apis/bot/v2/hook/abcdef-123",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_in_the_code_stops_it_and_is_not_repeated(desk: Desk, kind: str) -> None:
    (desk.run / "source" / "a b.py").write_text(f"first\n{SECRETS[kind]}\n")
    with pytest.raises(UsageError) as caught:
        desk.submit()
    assert f"source/a b.py:2: {kind}" in str(caught.value) and SECRETS[kind][5:] not in str(
        caught.value
    )
    assert not desk.dest.exists()


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("conf.yaml", "password: hunter2-Zq9", "password"),
        ("conf.yaml", "DB_PASSWORD: hunter2-Zq9", "password"),
        ("conf.toml", 'SECRET_KEY = "hunter2-Zq9"', "password"),
        ("notes.txt", "AWS_SECRET_ACCESS_KEY=hunter2-Zq9", "password"),
        ("requirements.txt", "-i https://me:hunter2@host/simple", "address with a password"),
        ("conf.yaml", "index: https://me:hunter2@mirror.example/simple", "address with a password"),
        ("conf.yaml", "data: /home/wang/images", "home directory"),
        ("conf.json", '{"data": "C:\\\\Users\\\\wang\\\\images"}', "home directory"),
        ("run.sh", "cd /Users/wang/code", "home directory"),
        (".env", "A=1", "a file for secrets, by its name"),
        ("id_ed25519", "x", "a file for secrets, by its name"),
    ],
)
def test_settings_and_names_are_looked_at(tmp_path: Path, name: str, text: str, kind: str) -> None:
    (tmp_path / name).write_text(text)
    assert [finding.kind for finding in secret_scan.search(tmp_path, [name])] == [kind]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "password = read_password()  # /home/wang"),
        ("a.yaml", "# password: the one of your account"),
        ("a.yaml", "password: ${PASSWORD}"),
        ("a.yaml", "root: ~/projects\npython: /root/miniconda3/bin/python"),
        ("a.py", "'-----BEGIN PRIVATE KEY-----' in text"),
        (".env.example", "A="),
        ("conf.yaml", "pad_token: [PADDING]\nsecret_santa: no-secret-at-all"),
        ("images.txt", "/home/wang/images/1.png 0"),
        ("b.bin", "\0ghp_" + "a" * 36),
    ],
)
def test_what_only_speaks_of_secrets_is_let_through(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert secret_scan.search(tmp_path, [name]) == []


def test_this_repository_can_be_handed_in() -> None:
    """Whoever trains in a clone of it submits its tests, too, with their made-up secrets."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True
    )
    names = listed.stdout.split("\0")[:-1] or [
        path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "tests").rglob("*.py")
    ]
    assert secret_scan.search(REPOSITORY, names) == []


def test_a_finding_can_be_accepted_and_the_check_remembers_it(desk: Desk) -> None:
    (desk.run / "source" / "conf.yaml").write_text("password: only-a-test\n")
    with pytest.raises(UsageError, match=r"--accept source/conf\.yaml"):
        desk.submit()
    assert desk.submit(accept=["source/conf.yaml"]) == 0
    assert desk.verify() == ""
