"""Messages in Chinese: the catalogue is complete, and finished lines are found in it."""

from __future__ import annotations

import gettext
import io
import json
import os
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.catalog import Message
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from remote.errors import UsageError
from remote.records import Progress
from remote.screen import language
from remote.screen.display import Display
from remote.screen.language import choose_language, system_is_chinese, translate
from remote.screen.tables import Column, build_table, state_style
from remote.screen.text import padded
from remote.screen.training import describe_progress
from remote.tasks.command_line import explain
from remote.tasks.run_tables import COLUMNS
from tests.support.messages import find_messages, read_catalogue

ROOT = Path(__file__).resolve().parents[2]
SEVERAL = re.compile(r"(?<=[A-Za-z])\{\d+\}")
"""The s of several, which Chinese has not."""
HALF_WIDTH = re.compile(r"[，；：（）？] |[\u4e00-\u9fff][,.;:?!()]|[,;:?!()][\u4e00-\u9fff]")
"""Punctuation that is not Chinese, or has a blank where Chinese has none."""


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(language, "_chosen", language.load("zh_CN"))
    yield


def messages() -> list[Message]:
    return [one for one in read_catalogue() if one.id]


def key(message: Message) -> str:
    return f"{message.context}\x04{message.id}" if message.context else str(message.id)


def places(text: str) -> set[str]:
    return {name for _, name, *_ in string.Formatter().parse(text) if name is not None}


def test_every_message_is_translated_and_nothing_else_is() -> None:
    known = {key(one) for one in messages() if one.string and not one.fuzzy}
    assert sorted(find_messages() - known) == [], "make messages names them"
    assert sorted(known - find_messages()) == []


def test_a_translation_has_the_same_places_and_blanks_at_its_ends() -> None:
    for one in messages():
        told, theirs = str(one.id), str(one.string)
        assert places(SEVERAL.sub("", told)) <= places(theirs) <= places(told), told
        assert len(told) - len(told.lstrip("\n")) == len(theirs) - len(theirs.lstrip("\n"))
        assert not HALF_WIDTH.search(theirs), theirs


def test_the_figures_of_a_summary_stand_below_each_other(chinese: None) -> None:
    labels = [
        str(one.id) for one in messages() if re.match(r"  [a-z]+( [a-z]+)? {2,}", str(one.id))
    ]
    columns = {cell_len(translate(label.format("9", "", "")).partition("9")[0]) for label in labels}
    assert len(labels) > 7 and columns == {17}


def test_what_is_loaded_is_what_was_translated() -> None:
    loaded = vars(gettext.translation("remote", language.LOCALE, ["zh_CN"]))["_catalog"]
    assert {key(one): one.string for one in messages()} == {k: v for k, v in loaded.items() if k}


@pytest.mark.parametrize("value", ["x{}", "{}.5 GiB"])
def test_every_message_is_found_with_something_filled_in(chinese: None, value: str) -> None:
    """And no other one, that would fit as well, is taken for it."""
    for one in messages():
        if " " in value and "} {" in str(one.id):
            continue  # there, one word is what is filled in
        values = [value.format(n) for n in range(len(places(str(one.id))))]
        told, theirs = str(one.id).format(*values), str(one.string).format(*values)
        assert one.context or translate(told) == theirs, one.id


@pytest.mark.parametrize(
    ("told", "theirs"),
    [
        (
            "unknown key remote.lanugage (did you mean language?)",
            "未知的键 remote.lanugage（是不是 language？）",
        ),
        (
            "remote.root must be a path; unknown key remote.x (did you mean y?)",
            "remote.root 必须是路径；未知的键 remote.x（是不是 y？）",
        ),
        (
            "the data needs 12 MiB on the disk at /, 3 MiB are free",
            "数据需要 12 MiB，而 / 的磁盘空闲 3 MiB",
        ),
        ("waiting: wang is deploying, for 2 min 5 s", "等待：wang 正在部署，已有 2 分 5 秒"),
        (
            "environment built: a venv of /bin/python3 in 12 s with uv (python 3.11.4, CPU build);"
            " no torch is required",
            "环境已建立：venv，基于 /bin/python3，用时 12 秒，使用 uv（python 3.11.4，CPU 版）；"
            "不需要 torch",
        ),
        (
            "gpu 0 is not free: user wang, python, 18.2 GiB",
            "GPU 0 不空闲：用户 wang, python, 18.2 GiB",
        ),
        (
            "2 runs are here in results, verified by sha256. Not here, by remote.results: a, b."
            " Other people work on it: wang (tmux). Shut gpu1 down (`poweroff`)?",
            "2 个运行已在本机的 results，已用 sha256 校验。按 remote.results 未取回：a, b。"
            "还有别人在用它：wang (tmux)。关闭 gpu1 吗（`poweroff`）？",
        ),
        ("an unheard-of word on the way", "an unheard-of word on the way"),
        ("zh: 2 points: 2 finished", "zh：2 个组合：2 已完成"),
        ("a has 2 free (a: 2 of 2 GPUs free)", "a 有 2 块空闲（a：2 块 GPU 中 2 块空闲）"),
        (
            "note: this server has Slurm: where trainings belong into its queue, set"
            " remote.launcher: slurm in fabric.yaml",
            "提示：这台服务器有 Slurm：若训练应进入它的队列，在 fabric.yaml 里设置"
            " remote.launcher: slurm",
        ),
        (
            "the server did not start our program (exit code 1: This account is closed)",
            "服务器没有启动我们的程序（退出码 1: This account is closed）",
        ),
        ("", ""),
        ("'ssh -p 2 me@x' names no host", "'ssh -p 2 me@x' 不是主机"),
        ("free: " + "x, " * 5000 + "y", "空闲：" + "x, " * 5000 + "y"),
    ],
)
def test_lines_that_are_put_together_from_parts(chinese: None, told: str, theirs: str) -> None:
    assert translate(told) == theirs


@pytest.mark.parametrize(
    ("told", "theirs"),
    [
        (
            "there is no task nothing; fab --list shows them",
            "没有任务 nothing；fab --list 列出它们",
        ),
        ("images: no such file or folder here", "images：本机没有这个文件或文件夹"),
        ("the name finished is not known to the network", "网络上没有 finished 这个名字"),
        ("run: the server has no GPU", "run：服务器没有 GPU"),
        ("stop has ended already: stopped", "stop 已经结束：已停止"),
        ("text: failed: out of memory on the GPU", "text：失败：显存不足"),
        ("  state          running: 3 s left", "  状态           运行中：剩余 3 秒"),
        ("waiting: somebody is deploying, for 5 s", "等待：有人 正在部署，已有 5 秒"),
    ],
)
def test_a_word_that_somebody_typed_stays_and_ours_is_translated(
    chinese: None, told: str, theirs: str
) -> None:
    assert translate(told) == theirs


def test_a_name_in_a_table_stays(chinese: None) -> None:
    columns = [Column("name"), Column("what", ours=True), Column("state", style=state_style)]
    table, _ = build_table(columns, [["images", "images", "finished"]], 80)
    assert [str(next(iter(column.cells))) for column in table.columns] == [
        "images",
        "图片",
        "已完成",
    ]


def test_one_is_not_several() -> None:
    for told, shown in (
        ("1 files, 3 B", "1 file, 3 B"),
        ("done (ab1, 1 files)", "done (ab1, 1 file)"),
        ("removed: 1 items, 3 B", "removed: 1 item, 3 B"),
        ("finished after 1 epochs", "finished after 1 epoch"),
        ("no server has 1 GPUs", "no server has 1 GPU"),
        ("1 of 1 files new, 11 files, 2.1 files", "1 of 1 files new, 11 files, 2.1 files"),
    ):
        assert translate(told) == shown


def test_an_error_says_in_chinese_what_where_and_what_to_type_next(
    chinese: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = io.StringIO()
    said = explain("No idea what 'trian' is!", None, ["train"])
    remedy = "run the same command again"
    error = UsageError(f"no option --x; {said}", host="login", step="login", remedy=remedy)
    Display(notes=notes).error(error)
    told = "错误：login，登录：no option --x；没有任务 trian（是不是 train？）；fab --list 列出它们"
    assert notes.getvalue() == f"{told} — 重复同一条命令\n"
    assert str(error).startswith("login, login: no option --x; there is no task trian")


def test_tables_fit_in_chinese_and_keep_their_colours(chinese: None) -> None:
    row = ["login", "running", "demo", "running", "now", "5m", "1/2", "val 3%", "0", "no GPU"]
    for width in (60, 80, 120):
        table, left_out = build_table(COLUMNS, [row], width)
        console = Console(file=io.StringIO(), width=width, color_system=None)
        with console.capture() as captured:
            console.print(table)
        lines = captured.get().splitlines()
        assert len(lines) == 2 and max(map(cell_len, lines)) <= width
        assert "状态" in lines[0] and "运行中" in lines[1] and lines[1].startswith("login")
    assert left_out == []
    (column,) = build_table([Column("state", style=state_style)], [["failed"]], 80)[0].columns
    (cell,) = column.cells
    assert isinstance(cell, Text) and (cell.plain, cell.style) == ("失败", "red")


def test_padding_counts_cells() -> None:
    assert [cell_len(padded(text, 8)) for text in ("ok", "正常", "é", "")] == [8] * 4


def test_json_logs_and_unknown_lines_stay_as_they_are(
    chinese: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Display()
    shown.json({"reason": "out of memory on the GPU"})
    shown.log("out of memory on the GPU\n")
    shown.line("out of memory on the GPU")
    printed = capsys.readouterr().out
    assert json.loads(printed.partition("}")[0] + "}") == {"reason": "out of memory on the GPU"}
    assert printed.splitlines()[3:] == ["out of memory on the GPU", "显存不足"]


def test_the_live_screen_s_figures(chinese: None) -> None:
    progress = Progress(phase="validating", epoch=3, max_epochs=9, seconds_left=75.0)
    assert describe_progress(progress) == "epoch 3/9  验证中  剩余 1 分 15 秒"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LANG": "zh_CN.UTF-8"}, True),
        ({"LANG": "zh_CN.GBK", "LANGUAGE": ""}, True),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "zh_CN.UTF-8"}, True),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, False),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "en:zh_CN"}, False),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "zh_CN:en"}, True),
        ({"LANG": "C", "LANGUAGE": "zh_CN"}, False),
        ({"LANG": "zh_TW.UTF-8"}, False),
        ({"LANG": "zh"}, True),
        ({"LANG": "de_DE.UTF-8"}, False),
    ],
)
def test_the_environment_says_which_language(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: bool
) -> None:
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert system_is_chinese() is expected


@pytest.mark.parametrize("name", ["zh_CN", "Chinese (Simplified)_China", "Chinese_China"])
def test_where_the_environment_says_nothing_the_system_does(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("locale.getlocale", lambda: (name, "UTF-8"))
    assert system_is_chinese()


@pytest.mark.parametrize(("setting", "expected"), [("zh", "运行中"), ("en", "running")])
def test_the_setting_decides_where_the_terminal_can_show_it(
    monkeypatch: pytest.MonkeyPatch, setting: str, expected: str
) -> None:
    monkeypatch.setattr(language, "_chosen", None)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    choose_language(setting)
    assert translate("running") == expected
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    choose_language(setting)
    assert translate("running") == "running"


def fab(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fabric", *words],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "LANGUAGE": "", "PYTHONUTF8": "1", **environment},
    )


def test_the_list_the_help_and_errors_are_in_chinese_and_exit_codes_stay() -> None:
    listed = fab("--list", LC_ALL="zh_CN.UTF-8").stdout.splitlines()
    assert "三条命令：" in listed and max(map(cell_len, listed)) <= 80
    assert all(re.search("[\u4e00-\u9fff]", line) for line in listed if line)
    helped = fab("train", "--help", FABRIC_REMOTE_LANGUAGE="zh").stdout
    assert "在服务器上启动训练" in helped and "取这么多块空闲的" in helped
    refused = fab("status", LC_ALL="zh_CN.UTF-8")
    assert refused.returncode == 2 and refused.stderr.startswith("错误：status 需要一台服务器")
    english = fab("status", LC_ALL="zh_CN.UTF-8", FABRIC_REMOTE_LANGUAGE="en")
    assert english.returncode == 2 and english.stderr.startswith("error: status needs a server")
